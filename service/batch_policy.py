"""Which queued items run next: a pure function of the queue, the policy and the time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Waiting(Protocol):
    """What the policy needs to know of a queued item. Times are of one monotonic clock, seconds."""

    @property
    def enqueued_at(self) -> float: ...

    @property
    def deadline(self) -> float | None: ...

    @property
    def abandoned(self) -> bool: ...


Item = TypeVar("Item", bound=Waiting)


@dataclass(frozen=True, slots=True)
class BatchPolicy:
    """The knobs. With `max_delay` 0 a batch is whatever queued while the device was busy."""

    max_batch_size: int
    max_delay: float = 0.0

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ValueError(f"max_batch_size must be at least 1, not {self.max_batch_size}")
        if self.max_delay < 0:
            raise ValueError(f"max_delay is a number of seconds from 0 up, not {self.max_delay}")


@dataclass(frozen=True, slots=True)
class Take(Generic[Item]):
    """What to do now. Every item named here leaves the queue.

    `batch`: run these together, oldest first. `expired`: answer that the deadline passed.
    `abandoned`: nobody waits for these; drop them. `wait`: with an empty batch, the seconds after
    which asking again can change the answer; None = only a new item can.
    """

    batch: list[Item]
    expired: list[Item]
    abandoned: list[Item]
    wait: float | None


def take_batch(queue: Sequence[Item], policy: BatchPolicy, now: float) -> Take[Item]:
    """Choose the next batch from `queue`, which is in order of arrival.

    A batch is due when it is full or when its *oldest* item has waited `max_delay`: the wait is
    anchored at the item, not at the moment of asking, so a busy device never adds to it.
    """
    live: list[Item] = []
    expired: list[Item] = []
    abandoned: list[Item] = []
    for item in queue:
        if item.abandoned:
            abandoned.append(item)
        elif item.deadline is not None and item.deadline <= now:
            expired.append(item)
        else:
            live.append(item)
    if not live:
        return Take([], expired, abandoned, None)
    due = live[0].enqueued_at + policy.max_delay
    if len(live) >= policy.max_batch_size or due <= now:
        return Take(live[: policy.max_batch_size], expired, abandoned, None)
    moments = [due, *(item.deadline for item in live if item.deadline is not None)]
    return Take([], expired, abandoned, min(moments) - now)
