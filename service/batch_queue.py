"""Everything that waits for a device, in one place under one lock. Standard library only.

A monitor without threads of its own: callers put items in, the batcher's threads take batches out
and bring back what became of them. Every submission leaves with exactly one answer.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from types import TracebackType
from typing import Generic, TypeVar

from service.batch_costs import BatchCosts
from service.batch_policy import BatchPolicy, FairClock, take_batch
from service.device import OutOfMemory
from service.flight import BatchReport, DeviceState, Flight
from service.submission import Completed, Item, Submission

Payload = TypeVar("Payload")
Result = TypeVar("Result")

_AHEAD = 2  # batches that the device has: one runs, one is ready
_LEAD_MARGIN = 1.5  # a batch is begun this many launch times before the device should be free
_NEWEST_WEIGHT = 0.2  # of the moving average of a launch time
_SOUND_BATCHES = 50  # so many good ones in a row double a size that memory had halved


class BatcherError(Exception):
    """An item that was not run, or not admitted."""


class BatcherFull(BatcherError):
    """As many images are in flight as may be; `retry_after` estimates the wait in seconds."""

    def __init__(self, retry_after: float) -> None:
        super().__init__("the queue is full; try again later")
        self.retry_after = retry_after


class BatcherDraining(BatcherError):
    """Nothing new is admitted; what is queued still runs."""


class BatcherStopped(BatcherError):
    """Nothing is run any more."""


class DeadlinePassed(BatcherError):
    """The item's deadline passed before its batch formed."""


class Slot(Generic[Payload, Result]):
    """The right to submit the items of one image. Leaving it gives up what was not answered."""

    def __init__(self, queue: BatchQueue[Payload, Result]) -> None:
        self._queue = queue
        self._submissions: list[Submission[Payload, Result]] = []

    def submit(
        self, payloads: Sequence[Payload], deadline: float | None = None
    ) -> Future[list[Completed[Result]]]:
        """Queue `payloads` together; the future gets their results in order, or one exception.

        `deadline`: a time of the batcher's clock. Raises BatcherStopped if nothing is run any more.
        """
        submission = self._queue.put(payloads, deadline)
        self._submissions.append(submission)
        return submission.future

    def __enter__(self) -> Slot[Payload, Result]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._queue.release(self._submissions)


class BatchQueue(Generic[Payload, Result]):
    """See the top of this file. Thread-safe; `take` and `next_launched` block."""

    def __init__(
        self, policy: BatchPolicy, max_images: int, asynchronous: bool, clock: Callable[[], float]
    ) -> None:
        self.clock = clock
        self._policy = policy
        self._max_images = max_images
        self._changed = threading.Condition()  # guards everything below
        self._waiting: list[Item[Payload, Result]] = []
        self._again: deque[list[Item[Payload, Result]]] = deque()
        self._flights: deque[Flight[Payload, Result]] = deque()
        self._images = 0
        self._batches = 0
        self._fair = FairClock()
        self._costs = BatchCosts()
        self._device = DeviceState(asynchronous, clock(), size_limit=policy.max_batch_size)
        self._draining = self._closed = self._suspect = False
        self._fault: str | None = None

    # -- state: each a single read, so no lock -------------------------------------------------

    @property
    def closed(self) -> bool:
        """Nothing is run any more, and everything that waited was answered."""
        return self._closed

    @property
    def fault(self) -> str | None:
        """Why it was closed; None if it is open or was drained."""
        return self._fault

    @property
    def suspect(self) -> bool:
        """An item failed alone, and the device was not trusted again since."""
        return self._suspect

    @property
    def draining(self) -> bool:
        """Nothing new is admitted."""
        return self._draining

    @property
    def images(self) -> int:
        """Images admitted and not yet released."""
        return self._images

    @property
    def depth(self) -> int:
        """Items that wait for the device."""
        return len(self._waiting)

    # -- the callers' side ---------------------------------------------------------------------

    def admit(self) -> Slot[Payload, Result]:
        """Reserve a place for one image; use the slot in a `with` statement.

        Raises BatcherFull, BatcherDraining or BatcherStopped.
        """
        with self._changed:
            if self._draining and self._fault is None:
                raise BatcherDraining("the batcher is draining; submit elsewhere")
            self._refuse_if_closed()
            if self._images >= self._max_images:
                raise BatcherFull(self._costs.drain_seconds(self._ahead(), self._device.size_limit))
            self._images += 1
        return Slot(self)

    def put(
        self, payloads: Sequence[Payload], deadline: float | None
    ) -> Submission[Payload, Result]:
        """Queue the items of an admitted image."""
        with self._changed:
            self._refuse_if_closed()
            ranks = self._fair.ranks(len(payloads))
            submission = Submission[Payload, Result](payloads, ranks, self.clock(), deadline)
            self._waiting.extend(submission.items)
            self._changed.notify_all()
        return submission

    def release(self, submissions: Sequence[Submission[Payload, Result]]) -> None:
        """An admitted image leaves; what of it was not answered is given up."""
        with self._changed:
            self._images -= 1
            for submission in submissions:
                submission.over = True
            # What its caller gave up is let go now, not when the device is free again: its arrays
            # would outlive the bound on images.
            self._waiting = [item for item in self._waiting if not item.abandoned]
            self._changed.notify_all()
        for submission in submissions:
            submission.future.cancel()

    def drain(self) -> None:
        """Admit nothing new. Slots already given keep their right to submit."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()

    def close(self, fault: str | None = None) -> None:
        """Answer everything that waits with BatcherStopped; nothing is run from here on."""
        with self._changed:
            if self._closed:
                return
            self._closed, self._fault = True, fault
            groups = [self._waiting, *self._again, *(flight.items for flight in self._flights)]
            error = BatcherStopped(f"nothing is run any more ({fault or 'told to stop'})")
            left = {id(item.submission): item.submission for group in groups for item in group}
            due = [submission for submission in left.values() if submission.fail(error)]
            self._waiting = []
            self._again.clear()
            self._flights.clear()
            self._changed.notify_all()
        for submission in due:
            submission.answer()

    def wait_closed(self, timeout: float) -> bool:
        """Block until `close`, at most `timeout` seconds; whether it came."""
        with self._changed:
            return self._changed.wait_for(lambda: self._closed, timeout)

    # -- the worker's side ---------------------------------------------------------------------

    def take(self) -> Flight[Payload, Result] | None:
        """Wait for the next batch. None: closed, the device is suspect, or all is drained."""
        while True:
            late: list[Submission[Payload, Result]] = []
            with self._changed:
                if self._closed or self._suspect:
                    return None
                items, wait = self._choose(late)
                if items:
                    self._batches += 1
                    flight = Flight(self._batches, items, self.clock())
                    self._flights.append(flight)
                elif self._draining and not self._images and not self._flights:
                    return None
                elif not late:
                    self._changed.wait(wait)
            for submission in late:
                submission.answer()
            if items:
                return flight

    def trust(self) -> None:
        """Let `take` give batches again."""
        with self._changed:
            self._suspect = False

    def launched(
        self, flight: Flight[Payload, Result], pending: Callable[[], Sequence[Result]]
    ) -> None:
        """The device has the batch; `pending` waits for it."""
        now = self.clock()
        with self._changed:
            seconds = now - flight.launched_at
            self._device.lead_seconds += _NEWEST_WEIGHT * (seconds - self._device.lead_seconds)
            flight.handed_at, flight.pending = now, pending
            self._changed.notify_all()

    # -- the collector's side ------------------------------------------------------------------

    def next_launched(self) -> Flight[Payload, Result] | None:
        """Wait for a batch that the device has. None: closed."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._closed or (self._flights and self._flights[0].pending is not None)
            )
            return None if self._closed else self._flights[0]

    def succeed(
        self, flight: Flight[Payload, Result], results: Sequence[Result], finished_at: float
    ) -> BatchReport:
        """Answer what the batch completed."""
        device = self._device
        assert flight.handed_at is not None
        with self._changed:
            self._land(flight)
            started_at = flight.launched_at
            if device.asynchronous:
                started_at = min(max(flight.handed_at, device.free_since), finished_at)
            else:
                finished_at = flight.handed_at  # it was done when the launch returned
            device.free_since = finished_at
            self._costs.observe(len(flight.items), finished_at - started_at)
            device.sound += 1
            if device.sound % _SOUND_BATCHES == 0:
                device.size_limit = min(2 * device.size_limit, self._policy.max_batch_size)
            due = []
            for item, result in zip(flight.items, results, strict=True):
                done = Completed(result, flight.number, item.enqueued_at, started_at, finished_at)
                if item.submission.complete(item.place, done):
                    due.append(item.submission)
            self._changed.notify_all()
        for submission in due:
            submission.answer()
        queued_at = tuple(item.enqueued_at for item in flight.items)
        return BatchReport(flight.number, flight.launched_at, started_at, finished_at, queued_at)

    def fail(self, flight: Flight[Payload, Result], error: Exception) -> None:
        """The batch failed: run it again in smaller parts, or answer the one item it had.

        An item that failed alone makes the device itself `suspect`.
        """
        items, due = flight.items, False
        with self._changed:
            if self._closed:
                return
            self._land(flight)
            self._device.sound = 0
            short = isinstance(error, OutOfMemory)
            if short:
                self._device.size_limit = max(1, len(items) // 2)
            if len(items) > 1 and short:
                half = len(items) // 2
                self._again.extend((items[:half], items[half:]))
            elif len(items) > 1:
                self._again.extend([item] for item in items)
            elif short and not items[0].retried:
                items[0].retried = True  # one more try, after memory was given back
                self._again.append(items)
            else:
                due = items[0].submission.fail(error)
                self._suspect = True
            self._changed.notify_all()
        if due:
            items[0].submission.answer()

    # -- under the lock ------------------------------------------------------------------------

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise BatcherStopped(f"nothing is run any more ({self._fault or 'told to stop'})")

    def _ahead(self) -> int:
        """Items that come before one that would be admitted now."""
        known = len(self._waiting) + sum(len(group) for group in self._again)
        known += sum(len(flight.items) for flight in self._flights)
        return max(known, self._images)  # an image that is still being decoded brings one or more

    def _choose(
        self, late: list[Submission[Payload, Result]]
    ) -> tuple[list[Item[Payload, Result]], float | None]:
        """The items of the next batch, or none and how long to wait; the expired go to `late`."""
        if len(self._flights) >= _AHEAD:
            return [], None
        while self._again:
            again = [item for item in self._again.popleft() if not item.abandoned]
            if again:
                return again, None
        policy = replace(self._policy, max_batch_size=self._device.size_limit)
        take = take_batch(self._waiting, policy, self.clock(), self._free_at())
        requests = len({id(item.submission) for item in self._waiting if not item.abandoned})
        gone = {id(item) for item in (*take.batch, *take.expired, *take.abandoned)}
        if gone:
            self._waiting = [item for item in self._waiting if id(item) not in gone]
        self._fair.advance(len(take.batch), requests)
        passed = DeadlinePassed("the deadline passed in the queue")
        late.extend(item.submission for item in take.expired if item.submission.fail(passed))
        return take.batch, take.wait

    def _free_at(self) -> float | None:
        """When to have the next batch ready; None: at once."""
        if not self._device.asynchronous or not self._flights:
            return None
        (running,) = self._flights
        started = max(running.launched_at, self._device.free_since)
        expected = started + self._costs.seconds(len(running.items))
        return expected - _LEAD_MARGIN * self._device.lead_seconds

    def _land(self, flight: Flight[Payload, Result]) -> None:
        if flight in self._flights:  # not if it was closed meanwhile
            self._flights.remove(flight)
