"""`take_batch` is a pure function: every case is a queue, a time and what must come out."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batch_policy import BatchPolicy, FairClock, take_batch


@dataclass(frozen=True)
class Queued:
    name: str
    enqueued_at: float = 0.0
    deadline: float | None = None
    abandoned: bool = False
    rank: float = 0.0


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


def test_lowest_ranks_run_first_and_equal_ranks_in_order() -> None:
    tail = Queued("tail", 1.0, rank=5.0)
    take = take_batch([tail, B, C], BatchPolicy(2), now=3.0)
    assert take.batch == [B, C]


def test_delay_is_anchored_at_the_oldest_whatever_its_rank() -> None:
    tail = Queued("tail", 1.0, rank=5.0)
    assert take_batch([tail, B], BatchPolicy(8, max_delay=5.0), now=6.0).batch == [B, tail]


def test_busy_device_lets_a_batch_fill_until_it_is_nearly_free() -> None:
    policy = BatchPolicy(3)
    waiting = take_batch([A, B], policy, now=3.0, free_at=7.0)
    assert (waiting.batch, waiting.wait) == ([], pytest.approx(4.0))
    assert take_batch([A, B, C], policy, now=3.0, free_at=7.0).batch == [A, B, C]  # full
    assert take_batch([A, B], policy, now=7.0, free_at=7.0).batch == [A, B]


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
    rank=st.floats(0, 10),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(items), st.integers(1, 5), st.floats(0, 5), st.floats(0, 20))
def test_every_item_has_one_fate_and_order_is_kept(
    queue: list[Queued], size: int, delay: float, now: float
) -> None:
    queue = sorted(queue, key=lambda item: item.enqueued_at)
    take = take_batch(queue, BatchPolicy(size, delay), now)
    live = [q for q in queue if not q.abandoned and (q.deadline is None or q.deadline > now)]
    ranked = sorted(live, key=lambda item: item.rank)
    assert take.batch == ranked[: len(take.batch)]
    assert len(take.batch) <= size
    assert len(take.expired) + len(take.abandoned) + len(live) == len(queue)
    # Live items either run now or there is a finite, positive time after which they might.
    if live and not take.batch:
        assert take.wait is not None
        assert take.wait > 0


# -- fairness ----------------------------------------------------------------------------------


@dataclass
class Simulation:
    """A device that runs `size` items a step, and requests that come step by step."""

    size: int
    clock: FairClock = field(default_factory=FairClock)
    queue: list[tuple[float, int, int]] = field(default_factory=list)  # rank, arrival, request
    arrivals: int = 0
    finished: dict[int, int] = field(default_factory=dict)  # request -> step of its last item

    def come(self, request: int, items: int) -> None:
        for rank in self.clock.ranks(items):
            self.queue.append((rank, self.arrivals, request))
            self.arrivals += 1

    def run(self, step: int) -> None:
        self.queue.sort()
        batch, requests = self.queue[: self.size], {request for *_, request in self.queue}
        self.queue = self.queue[self.size :]
        self.clock.advance(len(batch), len(requests))
        for *_, request in batch:
            self.finished[request] = step


def test_single_item_does_not_wait_for_the_tail_of_large_requests() -> None:
    """A flood of tens is queued; a single one that comes last runs in the very next batch."""
    simulation = Simulation(size=4)
    for request in range(8):
        simulation.come(request, 10)
    for step in range(5):
        simulation.run(step)
    simulation.come(99, 1)
    for step in range(5, 40):
        simulation.run(step)
    assert simulation.finished[99] - 5 <= 2
    assert max(simulation.finished.values()) == 20  # nothing is run twice or left: 81 items


@pytest.mark.parametrize("items", [2, 3, 10, 32])
def test_single_item_runs_next_however_long_the_flood_has_lasted(items: int) -> None:
    """The queue has been full of large requests for long: whenever one ends another one comes."""
    simulation, rng = Simulation(size=8), random.Random(0)
    places, single = 64, 10_000
    for request in range(places):
        simulation.come(request, rng.randint(1, items))  # so that they do not end together
    request = places
    for step in range(60 * items):
        waiting = {known for *_, known in simulation.queue}
        for _ in range(places - len(waiting)):
            simulation.come(request, items)
            request += 1
        if step % 5 == 0:
            simulation.come(single + step, 1)
        simulation.run(step)
    waits = {
        name - single: end - (name - single)
        for name, end in simulation.finished.items()
        if name >= single
    }
    assert len(waits) == 12 * items
    assert max(wait for step, wait in waits.items() if step > 20 * items) == 0  # all came at once


def test_large_request_is_not_starved_by_a_stream_of_single_ones() -> None:
    """The device runs 4 a step, 3 single ones come with every step: the large one has the rest."""
    simulation = Simulation(size=4)
    simulation.come(0, 32)
    for step in range(200):
        for place in range(3):
            simulation.come(1 + 3 * step + place, 1)
        simulation.run(step)
    assert simulation.finished[0] <= 32  # one item a step, all that is left beside the singles
    waits = [simulation.finished[1 + 3 * step] - step for step in range(200)]
    assert max(waits) <= 1


def test_large_request_comes_up_even_when_single_ones_saturate_the_device() -> None:
    simulation = Simulation(size=4)
    for request in range(1, 9):
        simulation.come(request, 1)
    simulation.come(0, 10)
    for step in range(200):
        simulation.run(step)
        if step == 0:
            before = len(simulation.queue)
        for place in range(4):
            simulation.come(100 + 4 * step + place, 1)
    assert 0 not in {request for *_, request in simulation.queue}
    assert before >= 10  # the queue was never short in between


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=2, max_size=8), st.integers(1, 5))
def test_requests_that_come_together_progress_alike(sizes: list[int], batch: int) -> None:
    """Until the first one is through, no request is two items ahead of another."""
    simulation = Simulation(size=batch)
    for request, items in enumerate(sizes):
        simulation.come(request, items)
    left = list(sizes)
    for step in range(sum(sizes)):
        if min(left) == 0:
            break
        waiting = [request for *_, request in sorted(simulation.queue)[:batch]]
        for request in waiting:
            left[request] -= 1
        done = [size - rest for size, rest in zip(sizes, left, strict=True)]
        if min(left) > 0:
            assert max(done) - min(done) <= 1 + batch // len(sizes)
        simulation.run(step)
