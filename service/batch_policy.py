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

    @property
    def rank(self) -> float:
        """From a `FairClock`: the lower one runs first, whatever came first."""
        ...


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

    `batch`: run these together, lowest rank first. `expired`: answer that the deadline passed.
    `abandoned`: nobody waits for these; drop them. `wait`: with an empty batch, the seconds after
    which asking again can change the answer; None = only a new item can.
    """

    batch: list[Item]
    expired: list[Item]
    abandoned: list[Item]
    wait: float | None


def take_batch(
    queue: Sequence[Item], policy: BatchPolicy, now: float, free_at: float | None = None
) -> Take[Item]:
    """Choose the next batch from `queue`, which is in order of arrival.

    A batch is due when it is full or when its *oldest* item has waited `max_delay`: the wait is
    anchored at the item, not at the moment of asking, so a busy device never adds to it.

    `free_at`: when the device, busy now, is expected to be free; None if it is free. Until then a
    batch that is not full waits, since whoever comes in the meantime can still join it.
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
    if free_at is not None:
        due = max(due, free_at)
    if len(live) >= policy.max_batch_size or due <= now:
        ranked = sorted(live, key=lambda item: item.rank)  # stable: equal ranks stay in order
        return Take(ranked[: policy.max_batch_size], expired, abandoned, None)
    moments = [due, *(item.deadline for item in live if item.deadline is not None)]
    return Take([], expired, abandoned, min(moments) - now)


# Turns between two items of one request. With 1 the clock of a full queue is up to a turn ahead of
# what runs, so whoever comes would wait for one item of each other request. The items of n need
# n / (n - 1) turns between them for that not to happen: 2 is enough for any n.
_TURNS = 2.0


class FairClock:
    """Virtual time, by which requests share the device however many items each has.

    A turn of time has gone by when every waiting request could have run one item (weighted fair
    queueing, Demers, Keshav and Shenker 1989; all weights 1). A request's first item ranks at its
    arrival, each other one two turns after the one before. So whoever comes with one item runs
    before the tails of all that wait, and a tail still comes up: time goes on with every item that
    runs.
    """

    def __init__(self) -> None:
        self._now = 0.0

    def ranks(self, count: int) -> list[float]:
        """Ranks for the items of one request that comes now."""
        return [self._now + _TURNS * place for place in range(count)]

    def advance(self, items: int, requests: int) -> None:
        """`items` were taken; before, so many different `requests` had some waiting."""
        self._now += items / max(1, requests)
