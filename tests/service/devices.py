"""Devices for the batcher's tests: they double numbers, and do whatever a test needs of them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from service.device import OutOfMemory

PATIENCE = 30.0


class Doubler:
    """A synchronous device. Can be held, poisoned, made small; remembers what it was asked."""

    asynchronous = False

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.poison: set[int] = set()
        self.fatal: BaseException | None = None
        self.memory: int | None = None
        """The largest batch that fits."""
        self.released = 0
        self.memory_after_release: int | None = None
        self.checks = 0
        self.sane = True
        self.warm_ups: list[str] = []

    def warm_up(self) -> None:
        self.warm_ups.append(threading.current_thread().name)

    def launch(self, payloads: Sequence[int]) -> Callable[[], list[int]]:
        self.batches.append(list(payloads))
        self.entered.set()
        assert self.gate.wait(PATIENCE)
        if self.fatal is not None:
            raise self.fatal
        if self.memory is not None and len(payloads) > self.memory:
            raise OutOfMemory(f"{len(payloads)} items")
        if self.poison & set(payloads):
            raise ZeroDivisionError("poison")
        return lambda: [2 * payload for payload in payloads]

    def check(self) -> None:
        self.checks += 1
        if not self.sane:
            raise RuntimeError("the device answers nonsense")

    def release_memory(self) -> None:
        self.released += 1
        if self.memory_after_release is not None:
            self.memory = self.memory_after_release

    def hold(self) -> None:
        self.gate.clear()
        self.entered.clear()


class SlowlyDoubler(Doubler):
    """An asynchronous device: `launch` returns at once, the test decides when a batch is done."""

    asynchronous = True

    def __init__(self) -> None:
        super().__init__()
        self.done: list[threading.Event] = []
        self.late_fault: Exception | None = None
        """Raised when results are awaited."""

    def launch(self, payloads: Sequence[int]) -> Callable[[], list[int]]:
        results = super().launch(payloads)
        event = threading.Event()
        self.done.append(event)

        def pending() -> list[int]:
            assert event.wait(PATIENCE)
            if self.late_fault is not None:
                raise self.late_fault
            return results()

        return pending
