"""A bounded queue, and one thread that owns the device and runs what is queued in batches.

Knows no framework and no array: the payload and the result are whatever `run_batch` takes and
gives. Threads only; a caller on an event loop wraps the futures.

What holds, whatever happens:
- Every submitted item gets exactly one answer: a result, an exception, or its own cancellation.
- A failed batch is run again item by item, so one bad item harms only itself.
- An item that was cancelled, or whose deadline passed, is never run.
- The queue is bounded in images: `admit()` counts one, however many items it then submits.
- If the thread dies, everything that waits is answered and `alive` is False from then on.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Generic, TypeVar

from service.batch_policy import BatchPolicy, take_batch

Payload = TypeVar("Payload")
Result = TypeVar("Result")

logger = logging.getLogger("segvlm.batcher")

_NEWEST_WEIGHT = 0.2  # of the moving average of an item's cost


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
    """The worker thread is not running any more."""


class DeadlinePassed(BatcherError):
    """The item's deadline passed before its batch formed."""


@dataclass(frozen=True, slots=True)
class Completed(Generic[Result]):
    """The result of one item and what its batch cost.

    `batch` numbers the batches of this process, so that a caller with several items can tell
    which of them shared one. `waited` and `seconds`: in the queue, and of the whole batch.
    """

    result: Result
    batch: int
    waited: float
    seconds: float


@dataclass(frozen=True, slots=True)
class BatchReport:
    """What `on_batch` is told after each batch: its size, its seconds, each item's wait."""

    size: int
    seconds: float
    waited: tuple[float, ...]


@dataclass(eq=False, slots=True)
class _Entry(Generic[Payload, Result]):
    payload: Payload
    enqueued_at: float
    deadline: float | None
    future: Future[Completed[Result]] = field(default_factory=Future)

    @property
    def abandoned(self) -> bool:
        return self.future.cancelled()


class Slot(Generic[Payload, Result]):
    """The right to submit the items of one image. Leaving it cancels what has not started."""

    def __init__(self, batcher: Batcher[Payload, Result]) -> None:
        self._batcher = batcher
        self._futures: list[Future[Completed[Result]]] = []

    def submit(
        self, payloads: Sequence[Payload], deadline: float | None = None
    ) -> list[Future[Completed[Result]]]:
        """Queue `payloads` together, one future for each, in order.

        `deadline`: a time of the batcher's clock. Raises BatcherStopped if the worker has died.
        """
        futures = self._batcher._enqueue(payloads, deadline)
        self._futures.extend(futures)
        return futures

    def __enter__(self) -> Slot[Payload, Result]:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for future in self._futures:
            future.cancel()  # only what has not started; the worker drops it
        self._batcher._release()


class Batcher(Generic[Payload, Result]):
    """See the top of this file. `start()` once, `stop()` once.

    `run_batch` gets 1 to `max_batch_size` payloads and returns as many results, in order. It and
    `warm_up`, which runs once before the first batch, are only ever called in the worker thread.
    """

    def __init__(
        self,
        run_batch: Callable[[Sequence[Payload]], Sequence[Result]],
        policy: BatchPolicy,
        max_images: int,
        *,
        warm_up: Callable[[], None] = lambda: None,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._run_batch = run_batch
        self._policy = policy
        self._max_images = max_images
        self._warm_up = warm_up
        self._on_batch = on_batch
        self._clock = clock
        self._changed = threading.Condition()
        self._queue: list[_Entry[Payload, Result]] = []
        self._running: list[_Entry[Payload, Result]] = []
        self._images = 0
        self._batches = 0
        self._seconds_per_item = 0.1  # a guess until the first batch has run
        self._warm = False
        self._draining = False
        self._stopped = False
        self._thread = threading.Thread(target=self._work, name="segvlm-device", daemon=True)

    # -- state: each a single read, so no lock -------------------------------------------------

    @property
    def alive(self) -> bool:
        """The worker runs, or has not been started yet."""
        return not self._stopped

    @property
    def warm(self) -> bool:
        """The warm-up has succeeded."""
        return self._warm

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
        return len(self._queue)

    # -- the caller's side ---------------------------------------------------------------------

    def start(self) -> None:
        """Start the worker thread: it warms up, then serves."""
        self._thread.start()

    def admit(self) -> Slot[Payload, Result]:
        """Reserve a place for one image; use the slot in a `with` statement.

        Raises BatcherFull, BatcherDraining or BatcherStopped.
        """
        with self._changed:
            if self._stopped:
                raise BatcherStopped("the worker thread has stopped; restart the process")
            if self._draining:
                raise BatcherDraining("the batcher is draining; submit elsewhere")
            if self._images >= self._max_images:
                waiting = max(len(self._queue) + len(self._running), self._images)
                raise BatcherFull(waiting * self._seconds_per_item)
            self._images += 1
        return Slot(self)

    def drain(self) -> None:
        """Admit nothing new. Slots already given keep their right to submit."""
        with self._changed:
            self._draining = True
            self._changed.notify_all()

    def stop(self, timeout: float) -> bool:
        """Drain, finish what is queued, end the thread; False if it still runs after `timeout`."""
        self.drain()
        if self._thread.ident is None:
            self._end()
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _enqueue(
        self, payloads: Sequence[Payload], deadline: float | None
    ) -> list[Future[Completed[Result]]]:
        now = self._clock()
        entries = [_Entry[Payload, Result](payload, now, deadline) for payload in payloads]
        with self._changed:
            if self._stopped:
                raise BatcherStopped("the worker thread has stopped; restart the process")
            self._queue.extend(entries)
            self._changed.notify_all()
        return [entry.future for entry in entries]

    def _release(self) -> None:
        with self._changed:
            self._images -= 1
            # What its caller gave up is let go now, not when the device is free again: its arrays
            # would outlive the bound on images.
            self._queue = [entry for entry in self._queue if not entry.abandoned]
            self._changed.notify_all()

    # -- the worker's side ---------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._warm_up()
            self._warm = True
            while (batch := self._next_batch()) is not None:
                self._execute(batch)
                del batch  # its arrays must not live until the next batch comes
        except BaseException:
            logger.exception("the worker thread dies; nothing more will be answered")
        finally:
            self._end()

    def _next_batch(self) -> list[_Entry[Payload, Result]] | None:
        """Wait for work. None: draining, nobody holds a slot and nothing is queued."""
        while True:
            with self._changed:
                take = take_batch(self._queue, self._policy, self._clock())
                gone = {id(entry) for entry in (*take.batch, *take.expired, *take.abandoned)}
                self._queue = [entry for entry in self._queue if id(entry) not in gone]
                if not gone:
                    if self._draining and not self._images and not self._queue:
                        return None
                    self._changed.wait(take.wait)
                    continue
                # From here on a cancellation comes too late, and is refused by the future.
                batch = [e for e in take.batch if e.future.set_running_or_notify_cancel()]
                self._running = batch
            for entry in take.expired:
                if entry.future.set_running_or_notify_cancel():
                    entry.future.set_exception(DeadlinePassed("the deadline passed in the queue"))
            if batch:
                return batch

    def _execute(self, batch: list[_Entry[Payload, Result]]) -> None:
        self._batches += 1
        started = self._clock()
        outcomes = self._outcomes(batch)
        seconds = self._clock() - started
        per_item = seconds / len(batch)
        self._seconds_per_item += _NEWEST_WEIGHT * (per_item - self._seconds_per_item)
        waited = tuple(started - entry.enqueued_at for entry in batch)
        for entry, outcome, wait in zip(batch, outcomes, waited, strict=True):
            if isinstance(outcome, Exception):
                entry.future.set_exception(outcome)
            else:
                entry.future.set_result(Completed(outcome[0], self._batches, wait, seconds))
        self._running = []
        try:
            self._on_batch(BatchReport(len(batch), seconds, waited))
        except Exception:
            logger.exception("an observer of the batcher failed")

    def _outcomes(
        self, batch: Sequence[_Entry[Payload, Result]]
    ) -> list[tuple[Result] | Exception]:
        """Run the batch; if that fails, each of its items alone."""
        try:
            results = self._run_batch([entry.payload for entry in batch])
            assert len(results) == len(batch), "run_batch must answer every item"
            return [(result,) for result in results]
        except Exception as error:
            if len(batch) == 1:
                return [error]
            logger.warning("a batch of %d failed (%r); running its items alone", len(batch), error)
            return [outcome for entry in batch for outcome in self._outcomes([entry])]

    def _end(self) -> None:
        """Answer whatever is left; nothing is run from here on."""
        with self._changed:
            self._stopped = True
            left = [*self._running, *self._queue]
            self._running, self._queue = [], []
        for entry in left:
            if entry.future.running() or (
                not entry.future.done() and entry.future.set_running_or_notify_cancel()
            ):
                entry.future.set_exception(BatcherStopped("the worker thread has stopped"))
