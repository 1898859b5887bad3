"""The batcher's promises, with real threads, gates instead of sleeps, and a clock of our own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from typing import Any

import pytest

from service.batch_policy import BatchPolicy
from service.batch_queue import BatcherDraining, BatcherFull, BatcherStopped, DeadlinePassed
from service.batcher import Batcher, BatcherLimits
from service.flight import BatchReport
from tests.service.devices import PATIENCE, Doubler

MakeBatcher = Callable[..., Batcher[int, int]]


@pytest.fixture
def device() -> Doubler:
    return Doubler()


@pytest.fixture
def make_batcher(device: Doubler) -> Iterator[MakeBatcher]:
    made: list[Batcher[int, int]] = []

    def make(
        max_batch_size: int = 4, max_images: int = 8, start: bool = True, **options: Any
    ) -> Batcher[int, int]:
        policy, limits = BatchPolicy(max_batch_size), BatcherLimits(max_images)
        batcher = Batcher[int, int](device, policy, limits, **options)
        if start:
            batcher.start()
        made.append(batcher)
        return batcher

    yield make
    device.gate.set()
    for batcher in made:
        assert batcher.stop(PATIENCE)


def values(future: Future[Any]) -> list[int]:
    return [completed.result for completed in future.result(PATIENCE)]


def test_items_that_queue_while_the_device_is_busy_form_one_batch(
    device: Doubler, make_batcher: MakeBatcher
) -> None:
    batcher = make_batcher()
    device.hold()
    with batcher.admit() as first, batcher.admit() as second, batcher.admit() as third:
        running = first.submit([1])
        assert device.entered.wait(PATIENCE)
        waiting = second.submit([2, 3]), third.submit([4])
        device.gate.set()
        assert [values(running), *map(values, waiting)] == [[2], [4, 6], [8]]
    assert [sorted(batch) for batch in device.batches] == [[1], [2, 3, 4]]


def test_batches_never_exceed_the_limit_and_results_keep_their_order(
    device: Doubler, make_batcher: MakeBatcher
) -> None:
    batcher = make_batcher(max_batch_size=4)
    with batcher.admit() as slot:
        completed = slot.submit(list(range(10))).result(PATIENCE)
    assert [one.result for one in completed] == [2 * number for number in range(10)]
    assert [len(batch) for batch in device.batches] == [4, 4, 2]
    assert [one.batch for one in completed] == [1] * 4 + [2] * 4 + [3] * 2


def test_small_request_overtakes_the_rest_of_a_large_one(
    device: Doubler, make_batcher: MakeBatcher
) -> None:
    batcher = make_batcher(max_batch_size=2)
    device.hold()
    with batcher.admit() as large, batcher.admit() as small:
        many = large.submit(list(range(10)))
        assert device.entered.wait(PATIENCE)
        one = small.submit([100])
        device.gate.set()
        assert values(one) == [200]
        assert values(many) == [2 * number for number in range(10)]
    assert next(n for n, batch in enumerate(device.batches) if 100 in batch) == 1


def test_one_bad_item_harms_only_its_own_request(
    device: Doubler, make_batcher: MakeBatcher
) -> None:
    batcher = make_batcher()
    device.poison = {13}
    device.hold()
    with batcher.admit() as first, batcher.admit() as second, batcher.admit() as third:
        first.submit([0])
        assert device.entered.wait(PATIENCE)
        good, bad, also_good = first.submit([1]), second.submit([13]), third.submit([2])
        device.gate.set()
        assert [values(good), values(also_good)] == [[2], [4]]
        with pytest.raises(ZeroDivisionError):
            bad.result(PATIENCE)
    assert device.batches == [[0], [1, 13, 2], [1], [13], [2]]
    with batcher.admit() as slot:  # and the thread lives on
        assert values(slot.submit([5])) == [10]


def test_rest_of_a_failed_request_is_not_run(device: Doubler, make_batcher: MakeBatcher) -> None:
    batcher = make_batcher(max_batch_size=1)
    device.poison = {13}
    with batcher.admit() as slot, pytest.raises(ZeroDivisionError):
        slot.submit([1, 13, 2, 3]).result(PATIENCE)
    with batcher.admit() as slot:
        slot.submit([5]).result(PATIENCE)
    assert device.batches == [[1], [13], [5]]


def test_wrong_number_of_results_is_a_failure_not_a_mix_up(
    device: Doubler, make_batcher: MakeBatcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "launch", lambda payloads: lambda: [7, 7])
    batcher = make_batcher()
    with batcher.admit() as slot, pytest.raises(AssertionError, match="every item"):
        slot.submit([1, 2, 3]).result(PATIENCE)


def test_abandoned_items_are_never_run(device: Doubler, make_batcher: MakeBatcher) -> None:
    batcher = make_batcher()
    device.hold()
    with batcher.admit() as first:
        running = first.submit([1])
        assert device.entered.wait(PATIENCE)
        with batcher.admit() as gone:
            abandoned = gone.submit([2, 3])
            assert batcher.depth == 2
        assert batcher.depth == 0
        device.gate.set()
        assert values(running) == [2]
    assert abandoned.cancelled()
    with batcher.admit() as last:
        last.submit([4]).result(PATIENCE)
    assert device.batches == [[1], [4]]


def test_item_whose_caller_left_is_not_run_again_after_a_failure(
    device: Doubler, make_batcher: MakeBatcher
) -> None:
    """Both are in the batch that fails; only the one that somebody waits for gets another try."""
    batcher = make_batcher()
    device.hold()
    device.poison = {13}
    with batcher.admit() as blocker, batcher.admit() as stays:
        blocker.submit([0])
        assert device.entered.wait(PATIENCE)
        with batcher.admit() as leaves:
            left = leaves.submit([2])
            kept = stays.submit([13])
            device.entered.clear()
            device.gate.set()
            while len(device.batches) < 2 or not device.entered.is_set():
                assert device.entered.wait(PATIENCE)
            device.gate.clear()
        device.gate.set()
        with pytest.raises(ZeroDivisionError):
            kept.result(PATIENCE)
    assert left.cancelled() or left.done()
    assert device.batches.count([13]) == 1


def test_running_item_is_dropped_when_its_caller_left(
    device: Doubler, make_batcher: MakeBatcher
) -> None:
    batcher = make_batcher()
    device.hold()
    with batcher.admit() as slot:
        future = slot.submit([1])
        assert device.entered.wait(PATIENCE)
    assert future.cancelled()
    device.gate.set()
    with batcher.admit() as slot:  # its late result disturbs nobody
        assert values(slot.submit([2])) == [4]


def test_queue_is_bounded_in_images_not_in_items(
    device: Doubler, make_batcher: MakeBatcher
) -> None:
    batcher = make_batcher(max_images=2)
    with batcher.admit() as first:
        first.submit([1, 2, 3, 4, 5])
        with batcher.admit():
            assert batcher.images == 2
            with pytest.raises(BatcherFull):
                batcher.admit()
        with batcher.admit():
            pass
    assert batcher.images == 0


def test_wait_that_a_full_queue_tells_grows_with_what_is_ahead(
    device: Doubler, make_batcher: MakeBatcher
) -> None:
    """Every batch of 4 has taken 8 s by our clock, so 12 more items are 24 s away."""
    now = [100.0]
    batcher = make_batcher(max_images=2, clock=lambda: now[0])
    for _ in range(30):
        device.hold()
        with batcher.admit() as slot:
            future = slot.submit([1, 2, 3, 4])
            assert device.entered.wait(PATIENCE)
            now[0] += 8.0
            device.gate.set()
            future.result(PATIENCE)
    device.hold()
    with batcher.admit() as first, batcher.admit() as second:
        first.submit([1, 2, 3, 4])
        assert device.entered.wait(PATIENCE)
        with pytest.raises(BatcherFull) as refused:
            batcher.admit()
        assert refused.value.retry_after == pytest.approx(8.0)
        second.submit([5, 6, 7, 8, 9, 10, 11, 12])
        with pytest.raises(BatcherFull) as refused:
            batcher.admit()
        assert refused.value.retry_after == pytest.approx(24.0)


def test_deadline_that_passes_in_the_queue_is_answered_and_not_run(
    device: Doubler, make_batcher: MakeBatcher
) -> None:
    now = [100.0]
    batcher = make_batcher(clock=lambda: now[0])
    device.hold()
    with batcher.admit() as first, batcher.admit() as second:
        running = first.submit([1], deadline=110.0)
        assert device.entered.wait(PATIENCE)
        late, patient = second.submit([2], deadline=110.0), second.submit([3], deadline=130.0)
        now[0] = 120.0
        device.gate.set()
        with pytest.raises(DeadlinePassed):
            late.result(PATIENCE)
        (completed,) = patient.result(PATIENCE)
        assert (completed.queued_at, completed.started_at) == (100.0, 120.0)
        assert values(running) == [2]  # its batch had formed in time
    assert device.batches == [[1], [3]]


def test_draining_finishes_what_was_admitted_and_admits_no_more(
    device: Doubler, make_batcher: MakeBatcher
) -> None:
    batcher = make_batcher()
    device.hold()
    with batcher.admit() as early, batcher.admit() as unhurried:
        running = early.submit([1])
        assert device.entered.wait(PATIENCE)
        batcher.drain()
        with pytest.raises(BatcherDraining):
            batcher.admit()
        later = unhurried.submit([2])  # admitted before, still decoding its image then
        device.gate.set()
        assert [values(running), values(later)] == [[2], [4]]
    assert batcher.stop(PATIENCE)
    assert not batcher.alive
    assert batcher.fault is None
    with pytest.raises(BatcherDraining):  # not "stopped": nothing is wrong with the device
        batcher.admit()


def test_warm_up_comes_first_and_in_the_worker_thread(
    device: Doubler, make_batcher: MakeBatcher
) -> None:
    batcher = make_batcher(start=False)
    with batcher.admit() as slot:
        future = slot.submit([1])
        assert not batcher.warm
        batcher.start()
        future.result(PATIENCE)
    assert batcher.warm
    assert device.warm_ups == ["segvlm-device"]


def test_stop_without_start_answers_what_is_queued(
    device: Doubler, make_batcher: MakeBatcher
) -> None:
    batcher = make_batcher(start=False)
    with batcher.admit() as slot:
        future = slot.submit([1])
        assert batcher.stop(PATIENCE)
        with pytest.raises(BatcherStopped):
            future.result(PATIENCE)


class Observer:
    """Remembers, and fails itself."""

    def __init__(self) -> None:
        self.reports: list[BatchReport] = []
        self.failures: list[str] = []

    def batch_finished(self, report: BatchReport) -> None:
        self.reports.append(report)
        raise KeyError("an observer's own fault")

    def batch_failed(self, kind: str) -> None:
        self.failures.append(kind)
        raise KeyError("an observer's own fault")


def test_observer_sees_every_batch_and_cannot_kill_the_threads(
    device: Doubler, make_batcher: MakeBatcher
) -> None:
    observer = Observer()
    batcher = make_batcher(observer=observer)
    device.poison = {13}
    for numbers in ([1, 2], [3], [4, 13]):
        with batcher.admit() as slot:
            try:
                slot.submit(numbers).result(PATIENCE)
            except ZeroDivisionError:
                assert 13 in numbers
    assert batcher.stop(PATIENCE)
    assert [report.size for report in observer.reports] == [2, 1, 1]
    assert observer.failures == ["exception", "exception"]
    for report in observer.reports:
        times = (*report.queued_at[:1], report.launched_at, report.started_at, report.finished_at)
        assert list(times) == sorted(times)


def test_every_request_gets_exactly_one_answer_under_load(
    device: Doubler, make_batcher: MakeBatcher
) -> None:
    """Many callers, poison among the items, some callers leave: nothing is lost or doubled."""
    batcher = make_batcher(max_batch_size=3, max_images=100)
    device.poison = {number for number in range(400) if number % 17 == 0}
    device.memory = 2
    answers: dict[int, list[str]] = {caller: [] for caller in range(40)}

    def call(caller: int) -> None:
        numbers = list(range(10 * caller, 10 * caller + 10))
        with batcher.admit() as slot:
            future = slot.submit(numbers)
            if caller % 5 == 4:
                future.add_done_callback(lambda _: answers[caller].append("left"))
                return
            try:
                right = values(future) == [2 * number for number in numbers]
                answers[caller].append("right" if right else "wrong")
            except ZeroDivisionError:
                answers[caller].append("poison")
            except CancelledError:
                answers[caller].append("cancelled")

    threads = [threading.Thread(target=call, args=(caller,)) for caller in answers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    for caller, given in answers.items():
        poisoned = any(n % 17 == 0 for n in range(10 * caller, 10 * caller + 10))
        assert given == ["left" if caller % 5 == 4 else "poison" if poisoned else "right"]
    assert batcher.images == 0
