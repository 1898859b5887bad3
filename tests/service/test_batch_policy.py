"""`take_batch` is a pure function: every case is a queue, a time and what must come out."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batch_policy import BatchPolicy, take_batch


@dataclass(frozen=True)
class Queued:
    name: str
    enqueued_at: float = 0.0
    deadline: float | None = None
    abandoned: bool = False


A, B, C = Queued("a", 1.0), Queued("b", 2.0), Queued("c", 3.0)


def test_nothing_queued_waits_for_an_arrival() -> None:
    take = take_batch([], BatchPolicy(4), now=9.0)
    assert (take.batch, take.wait) == ([], None)


def test_zero_delay_takes_whatever_is_there() -> None:
    take = take_batch([A, B, C], BatchPolicy(8), now=3.0)
    assert take.batch == [A, B, C]


def test_batch_is_the_oldest_up_to_the_limit() -> None:
    assert take_batch([A, B, C], BatchPolicy(2), now=3.0).batch == [A, B]


def test_delay_is_anchored_at_the_oldest_item_not_at_the_asking() -> None:
    policy = BatchPolicy(8, max_delay=5.0)
    early = take_batch([A, B], policy, now=2.0)
    assert (early.batch, early.wait) == ([], pytest.approx(4.0))
    # Asked for the first time long after: the oldest has waited enough, so nothing waits again.
    assert take_batch([A, B], policy, now=6.0).batch == [A, B]


def test_full_batch_does_not_wait_for_the_delay() -> None:
    assert take_batch([A, B], BatchPolicy(2, max_delay=60.0), now=2.0).batch == [A, B]


def test_expired_items_are_answered_and_not_run() -> None:
    late = Queued("late", 0.0, deadline=2.0)
    take = take_batch([late, B], BatchPolicy(8), now=2.0)
    assert (take.batch, take.expired) == ([B], [late])


def test_abandoned_items_are_dropped_even_when_they_also_expired() -> None:
    gone = Queued("gone", 0.0, deadline=1.0, abandoned=True)
    take = take_batch([gone, B], BatchPolicy(8), now=2.0)
    assert (take.batch, take.expired, take.abandoned) == ([B], [], [gone])


def test_abandoned_items_do_not_fill_a_batch() -> None:
    gone = Queued("gone", 0.0, abandoned=True)
    assert take_batch([gone, A, B], BatchPolicy(2), now=3.0).batch == [A, B]


def test_wait_ends_at_a_deadline_that_comes_before_the_delay() -> None:
    hurried = Queued("hurried", 2.0, deadline=2.5)
    take = take_batch([A, hurried], BatchPolicy(8, max_delay=60.0), now=2.0)
    assert take.wait == pytest.approx(0.5)


@pytest.mark.parametrize(("size", "delay"), [(0, 0.0), (1, -1.0)])
def test_impossible_policies_are_refused(size: int, delay: float) -> None:
    with pytest.raises(ValueError, match="max_"):
        BatchPolicy(size, delay)


items = st.builds(
    Queued,
    name=st.just("x"),
    enqueued_at=st.floats(0, 10),
    deadline=st.none() | st.floats(0, 20),
    abandoned=st.booleans(),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(items), st.integers(1, 5), st.floats(0, 5), st.floats(0, 20))
def test_every_item_has_one_fate_and_order_is_kept(
    queue: list[Queued], size: int, delay: float, now: float
) -> None:
    queue = sorted(queue, key=lambda item: item.enqueued_at)
    take = take_batch(queue, BatchPolicy(size, delay), now)
    live = [q for q in queue if not q.abandoned and (q.deadline is None or q.deadline > now)]
    assert take.batch == live[: len(take.batch)]
    assert len(take.batch) <= size
    assert len(take.expired) + len(take.abandoned) + len(live) == len(queue)
    # Live items either run now or there is a finite, positive time after which they might.
    if live and not take.batch:
        assert take.wait is not None
        assert take.wait > 0
