"""What the batcher needs of whatever runs its batches. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

Payload = TypeVar("Payload")
Result = TypeVar("Result")
PayloadIn = TypeVar("PayloadIn", contravariant=True)
ResultOut = TypeVar("ResultOut", covariant=True)

Pending = Callable[[], Sequence[Result]]
"""Waits until the device is done, then answers the results. Called once."""


class OutOfMemory(Exception):
    """The device had no memory for this batch; a smaller one may fit."""


class DeviceLost(Exception):
    """The device answers nothing any more; only a new process helps."""


class Device(Protocol[PayloadIn, ResultOut]):
    """Runs batches. Everything but a `Pending` is only ever called in the batcher's worker thread.

    `launch` and its `Pending` may raise `OutOfMemory` (the batch is halved), `DeviceLost` (the
    batcher stops for good) or any other Exception (the items are run alone).
    """

    @property
    def asynchronous(self) -> bool:
        """`launch` returns before the device is done, so the next batch can be prepared."""
        ...

    def warm_up(self) -> None:
        """Whatever makes the first batch as quick as the others. Raises if nothing can be run."""
        ...

    def launch(self, payloads: Sequence[PayloadIn]) -> Callable[[], Sequence[ResultOut]]:
        """Start a batch; its results come in the payloads' order."""
        ...

    def check(self) -> None:
        """Asked after an item failed alone: raise if the device itself is at fault."""
        ...

    def release_memory(self) -> None:
        """Give back what only serves speed; asked after `OutOfMemory`, before the next try."""
        ...
