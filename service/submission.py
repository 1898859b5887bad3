"""The items of one request, and the single answer that they get together. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Payload = TypeVar("Payload")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Completed(Generic[Result]):
    """The result of one item and what its batch cost.

    `batch` numbers the batches of this process, so that a caller with several items can tell
    which of them shared one. Times are of the batcher's clock, in seconds: when the item was
    queued, when the device began with its batch, when it was done.
    """

    result: Result
    batch: int
    queued_at: float
    started_at: float
    finished_at: float


class Submission(Generic[Payload, Result]):
    """Items that were submitted together. The future gets their results in order, or one exception.

    Belongs to a queue, which calls every method under its lock, except `answer`.
    """

    def __init__(
        self,
        payloads: Sequence[Payload],
        ranks: Sequence[float],
        now: float,
        deadline: float | None,
    ) -> None:
        self.future: Future[list[Completed[Result]]] = Future()
        self.over = False
        """Answered, or given up by its caller: none of its items need run any more."""
        self.deadline = deadline
        self.items = [
            Item(self, place, payload, rank, now)
            for place, (payload, rank) in enumerate(zip(payloads, ranks, strict=True))
        ]
        self._results: list[Completed[Result] | None] = [None] * len(self.items)
        self._missing = len(self.items)
        self._error: BaseException | None = None

    def complete(self, place: int, completed: Completed[Result]) -> bool:
        """Note one result. True: it was the last, so `answer` is due."""
        if self.over:
            return False
        self._results[place] = completed
        self._missing -= 1
        self.over = self._missing == 0
        return self.over

    def fail(self, error: BaseException) -> bool:
        """One of the items failed, so the whole submission did. True: `answer` is due."""
        if self.over:
            return False
        self._error = error
        self.over = True
        return True

    def answer(self) -> None:
        """Hand out the results or the exception, unless the caller has cancelled meanwhile."""
        if not self.future.set_running_or_notify_cancel():
            return
        if self._error is not None:
            self.future.set_exception(self._error)
        else:
            self.future.set_result([result for result in self._results if result is not None])


@dataclass(eq=False, slots=True)
class Item(Generic[Payload, Result]):
    """One item in the queue or in a batch; satisfies `service.batch_policy.Waiting`."""

    submission: Submission[Payload, Result]
    place: int
    payload: Payload
    rank: float
    enqueued_at: float
    retried: bool = field(default=False)
    """Ran out of memory alone once; it gets one more try after memory was given back."""

    @property
    def deadline(self) -> float | None:
        return self.submission.deadline

    @property
    def abandoned(self) -> bool:
        return self.submission.over
