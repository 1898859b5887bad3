"""The threads between a queue and a device: batches go out, answers come back.

Knows no framework and no array: the payload and the result are whatever the device takes and
gives. A caller on an event loop wraps the futures.

Three threads: the *worker* forms batches and launches them, and is the only one that calls the
device; the *collector* waits for what was launched and answers; the *watchdog* looks at the clock.
While one batch runs on an asynchronous device the next one is made ready, never more.

What holds, whatever happens:
- Every submission gets exactly one answer: its results, an exception, or its own cancellation.
- A failed batch is run again item by item, so one bad item harms only itself. If memory ran out,
  it is run again in halves, and batches stay smaller for a while.
- An item whose caller left, or whose deadline passed, is never run.
- The queue is bounded in images: `admit()` counts one, however many items it then submits.
- No request starves: items run in the order of a `FairClock`.
- When the device is lost or makes no progress, everything that waits is answered at once, and
  `alive` is False from then on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, Literal, Protocol, TypeVar

from service.batch_policy import BatchPolicy
from service.batch_queue import BatchQueue, Slot
from service.device import Device, DeviceLost, OutOfMemory
from service.flight import BatchReport, Flight
from service.watchdog import Watchdog

Payload = TypeVar("Payload")
Result = TypeVar("Result")

logger = logging.getLogger("segvlm.batcher")

_CHECKS = 3

FailureKind = Literal["exception", "out_of_memory"]


@dataclass(frozen=True, slots=True)
class BatcherLimits:
    """How much may wait, and how long the device may be silent before it is given up.

    `max_images`: admitted at a time. `batch_timeout`: seconds without progress while it has a
    batch. `warm_up_timeout`: seconds for the warm-up.
    """

    max_images: int
    batch_timeout: float = float("inf")
    warm_up_timeout: float = float("inf")


class BatchObserver(Protocol):
    """Told of batches in the batcher's threads; what it raises is logged and changes nothing."""

    def batch_finished(self, report: BatchReport) -> None:
        """A batch succeeded and is answered."""

    def batch_failed(self, kind: FailureKind) -> None:
        """A batch failed, and is run again in parts unless it had one item."""


class Unobserved:
    """An observer that looks away."""

    def batch_finished(self, report: BatchReport) -> None:
        pass

    def batch_failed(self, kind: FailureKind) -> None:
        pass


class Batcher(Generic[Payload, Result]):
    """See the top of this file. `start()` once, `stop()` once."""

    def __init__(
        self,
        device: Device[Payload, Result],
        policy: BatchPolicy,
        limits: BatcherLimits,
        *,
        observer: BatchObserver | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._device = device
        self._limits = limits
        self._observer = observer or Unobserved()
        self._clock = clock
        self._watchdog = Watchdog(self._give_up, clock)
        self._queue = BatchQueue[Payload, Result](
            policy, limits.max_images, device.asynchronous, clock
        )
        self._warm = self._memory_short = False
        targets = {
            "device": self._work,
            "results": self._collect,
            "watchdog": self._watchdog.watch,
        }
        self._threads = {
            name: threading.Thread(target=target, name=f"segvlm-{name}", daemon=True)
            for name, target in targets.items()
        }

    # -- from any thread -----------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """The worker runs, or has not been started yet."""
        return not self._queue.closed

    @property
    def fault(self) -> str | None:
        """Why the device was given up; None while it was not."""
        return self._queue.fault

    @property
    def warm(self) -> bool:
        """The warm-up has succeeded."""
        return self._warm

    @property
    def draining(self) -> bool:
        """Nothing new is admitted."""
        return self._queue.draining

    @property
    def images(self) -> int:
        """Images admitted and not yet released."""
        return self._queue.images

    @property
    def depth(self) -> int:
        """Items that wait for the device."""
        return self._queue.depth

    def start(self) -> None:
        """Start the threads: the worker warms up, then serves."""
        for thread in self._threads.values():
            thread.start()

    def admit(self) -> Slot[Payload, Result]:
        """Reserve a place for one image; use the slot in a `with` statement.

        Raises BatcherFull, BatcherDraining or BatcherStopped.
        """
        return self._queue.admit()

    def drain(self) -> None:
        """Admit nothing new. Slots already given keep their right to submit."""
        self._queue.drain()

    def stop(self, timeout: float) -> bool:
        """Drain, finish what is queued, end the threads; False if they run on after `timeout`.

        A device that was given up may never come back, so it gets a second at most.
        """
        self.drain()
        threads = self._threads["device"], self._threads["results"]
        if threads[0].ident is None:
            self._queue.close()
            return True
        end = time.monotonic() + timeout
        self._queue.wait_closed(timeout)
        if self.fault is not None:
            end = min(end, time.monotonic() + 1.0)
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _give_up(self, reason: str) -> None:
        """Answer everybody; whatever still runs in the device is not waited for."""
        logger.critical("the device is given up (%s); nothing more will be answered", reason)
        self._queue.close(reason)

    # -- the worker ----------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            with self._watchdog.limit("the warm-up", self._limits.warm_up_timeout):
                self._device.warm_up()
            self._warm = True
            while True:
                flight = self._queue.take()
                if flight is not None:
                    self._launch(flight)
                elif self._queue.suspect:
                    self._check()
                else:
                    break
                del flight  # its arrays must not live until the next batch comes
        except BaseException as error:
            logger.exception("the worker thread dies")
            self._give_up(f"{type(error).__name__}: {error}")
        self._queue.close()
        self._watchdog.end()

    def _launch(self, flight: Flight[Payload, Result]) -> None:
        with self._watchdog.limit("a batch", self._limits.batch_timeout):
            try:
                if self._memory_short:
                    self._memory_short = False
                    self._device.release_memory()
                pending = self._device.launch([item.payload for item in flight.items])
            except DeviceLost:
                raise
            except Exception as error:
                self._failed(flight, error)
            else:
                self._queue.launched(flight, pending)

    def _check(self) -> None:
        """An item failed alone. A device that then fails a question that it must know is broken,
        and must not look ready. One failure can be chance, so it gets some tries."""
        with self._watchdog.limit("the check after a failure", self._limits.batch_timeout):
            for left in reversed(range(_CHECKS)):
                try:
                    self._device.check()
                    break
                except Exception as error:
                    if isinstance(error, DeviceLost) or not left:
                        raise
                    logger.warning("the device failed a check: %r", error)
                    if isinstance(error, OutOfMemory):
                        self._device.release_memory()
        self._queue.trust()

    def _failed(self, flight: Flight[Payload, Result], error: Exception) -> None:
        """In the worker or the collector."""
        logger.warning("a batch of %d failed: %r", len(flight.items), error)
        short = isinstance(error, OutOfMemory)
        self._memory_short |= short
        self._queue.fail(flight, error)
        self._tell(lambda: self._observer.batch_failed("out_of_memory" if short else "exception"))

    # -- the collector -------------------------------------------------------------------------

    def _collect(self) -> None:
        while (flight := self._queue.next_launched()) is not None:
            self._land(flight)
            del flight

    def _land(self, flight: Flight[Payload, Result]) -> None:
        assert flight.pending is not None
        try:
            with self._watchdog.limit("a batch", self._limits.batch_timeout):
                results = flight.pending()
            assert len(results) == len(flight.items), "a device must answer every item"
        except DeviceLost as error:
            self._give_up(f"{type(error).__name__}: {error}")
        except Exception as error:
            self._failed(flight, error)
        else:
            report = self._queue.succeed(flight, results, self._clock())
            self._tell(lambda: self._observer.batch_finished(report))

    def _tell(self, news: Callable[[], None]) -> None:
        try:
            news()
        except Exception:
            logger.exception("an observer of the batcher failed")
