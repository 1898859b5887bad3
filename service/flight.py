"""A batch on its way through the device. Standard library only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from service.submission import Item

Payload = TypeVar("Payload")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class BatchReport:
    """A batch that succeeded. Times are of the batcher's clock, in seconds.

    `launched_at`: the worker began with it. `started_at` and `finished_at`: the device began and
    ended. `queued_at`: when each of its items was queued.
    """

    number: int
    launched_at: float
    started_at: float
    finished_at: float
    queued_at: tuple[float, ...]

    @property
    def size(self) -> int:
        return len(self.queued_at)


@dataclass(eq=False, slots=True)
class Flight(Generic[Payload, Result]):
    """A batch that the device has or is about to get."""

    number: int
    items: list[Item[Payload, Result]]
    launched_at: float
    handed_at: float | None = None
    """When the launch returned; None while the worker is still in it."""
    pending: Callable[[], Sequence[Result]] | None = None


@dataclass(slots=True)
class DeviceState:
    """What the queue knows of the device."""

    asynchronous: bool = False
    free_since: float = 0.0
    lead_seconds: float = 0.0
    """How long a launch takes, a moving average."""
    size_limit: int = 1
    """Of a batch; below the policy's after memory ran out."""
    sound: int = 0
    """Batches that succeeded in a row."""
