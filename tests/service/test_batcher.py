"""The batcher's promises, with real threads, gates instead of sleeps, and a clock of our own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError

import pytest

from service.batch_policy import BatchPolicy
from service.batcher import (
    Batcher,
    BatcherDraining,
    BatcherFull,
    BatcherStopped,
    BatchReport,
    DeadlinePassed,
)

PATIENCE = 30.0


class Device:
    """Doubles numbers. Can be held, poisoned, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Event()
        self.gate = threading.Event()
        self.gate.set()
        self.poison: set[int] = set()
        self.fatal: BaseException | None = None

    def run(self, payloads: Sequence[int]) -> list[int]:
        self.batches.append(list(payloads))
        self.entered.set()
        assert self.gate.wait(PATIENCE)
        if self.fatal is not None:
            raise self.fatal
        if self.poison & set(payloads):
            raise ZeroDivisionError("poison")
        return [2 * payload for payload in payloads]

    def hold(self) -> None:
        self.gate.clear()
        self.entered.clear()


MakeBatcher = Callable[..., Batcher[int, int]]


@pytest.fixture
def device() -> Device:
    return Device()


@pytest.fixture
def make_batcher(device: Device) -> Iterator[MakeBatcher]:
    made: list[Batcher[int, int]] = []

    def make(
        max_batch_size: int = 4, max_images: int = 8, start: bool = True, **options: object
    ) -> Batcher[int, int]:
        batcher = Batcher(device.run, BatchPolicy(max_batch_size), max_images, **options)  # type: ignore[arg-type]
        if start:
            batcher.start()
        made.append(batcher)
        return batcher

    yield make
    device.gate.set()
    for batcher in made:
        assert batcher.stop(PATIENCE)


def test_items_that_queue_while_the_device_is_busy_form_one_batch(
    device: Device, make_batcher: MakeBatcher
) -> None:
    batcher = make_batcher()
    device.hold()
    with batcher.admit() as first, batcher.admit() as second, batcher.admit() as third:
        running = first.submit([1])
        assert device.entered.wait(PATIENCE)
        waiting = second.submit([2, 3]) + third.submit([4])
        device.gate.set()
        results = [future.result(PATIENCE).result for future in running + waiting]
    assert results == [2, 4, 6, 8]
    assert device.batches == [[1], [2, 3, 4]]


def test_batches_never_exceed_the_limit(device: Device, make_batcher: MakeBatcher) -> None:
    batcher = make_batcher(max_batch_size=4)
    with batcher.admit() as slot:
        futures = slot.submit(list(range(10)))
        completed = [future.result(PATIENCE) for future in futures]
    assert [one.result for one in completed] == [2 * number for number in range(10)]
    assert [len(batch) for batch in device.batches] == [4, 4, 2]
    assert [one.batch for one in completed] == [1] * 4 + [2] * 4 + [3] * 2


def test_one_bad_item_harms_only_itself(device: Device, make_batcher: MakeBatcher) -> None:
    batcher = make_batcher()
    device.poison = {13}
    with batcher.admit() as slot:
        good, bad, also_good = slot.submit([1, 13, 2])
        assert good.result(PATIENCE).result == 2
        assert also_good.result(PATIENCE).result == 4
        with pytest.raises(ZeroDivisionError):
            bad.result(PATIENCE)
    assert device.batches == [[1, 13, 2], [1], [13], [2]]
    with batcher.admit() as slot:  # and the thread lives on
        assert slot.submit([5])[0].result(PATIENCE).result == 10


def test_wrong_number_of_results_is_a_failure_not_a_mix_up(make_batcher: MakeBatcher) -> None:
    batcher: Batcher[int, int] = Batcher(lambda batch: [7, 7], BatchPolicy(4), 4)
    batcher.start()
    with batcher.admit() as slot:
        futures = slot.submit([1, 2, 3])
        for future in futures:
            with pytest.raises(AssertionError):
                future.result(PATIENCE)
    assert batcher.stop(PATIENCE)


def test_abandoned_items_are_never_run(device: Device, make_batcher: MakeBatcher) -> None:
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
        assert running[0].result(PATIENCE).result == 2
    assert all(future.cancelled() for future in abandoned)
    with batcher.admit() as last:
        last.submit([4])[0].result(PATIENCE)
    assert device.batches == [[1], [4]]


def test_running_item_is_finished_although_its_caller_left(
    device: Device, make_batcher: MakeBatcher
) -> None:
    batcher = make_batcher()
    device.hold()
    with batcher.admit() as slot:
        (future,) = slot.submit([1])
        assert device.entered.wait(PATIENCE)
    device.gate.set()
    assert future.result(PATIENCE).result == 2


def test_queue_is_bounded_in_images_not_in_items(device: Device, make_batcher: MakeBatcher) -> None:
    batcher = make_batcher(max_images=2)
    with batcher.admit() as first:
        first.submit([1, 2, 3, 4, 5])
        with batcher.admit():
            assert batcher.images == 2
            with pytest.raises(BatcherFull) as refused:
                batcher.admit()
            assert refused.value.retry_after > 0
        with batcher.admit():
            pass
    assert batcher.images == 0


def test_deadline_that_passes_in_the_queue_is_answered_and_not_run(
    device: Device, make_batcher: MakeBatcher
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
            late[0].result(PATIENCE)
        assert patient[0].result(PATIENCE).waited == 20.0
        assert running[0].result(PATIENCE).result == 2  # its batch had formed in time
    assert device.batches == [[1], [3]]


def test_draining_finishes_what_was_admitted_and_admits_no_more(
    device: Device, make_batcher: MakeBatcher
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
        assert [f.result(PATIENCE).result for f in running + later] == [2, 4]
    assert batcher.stop(PATIENCE)
    assert not batcher.alive


def test_death_of_the_worker_answers_everyone(device: Device) -> None:
    batcher: Batcher[int, int] = Batcher(device.run, BatchPolicy(1), 8)
    batcher.start()
    device.hold()
    with batcher.admit() as slot:
        futures = slot.submit([1, 2])
        assert device.entered.wait(PATIENCE)
        device.fatal = SystemExit("the device is gone")
        device.gate.set()
        for future in futures:
            with pytest.raises(BatcherStopped):
                future.result(PATIENCE)
        assert not batcher.alive
        with pytest.raises(BatcherStopped):
            slot.submit([3])
    with pytest.raises(BatcherStopped):
        batcher.admit()
    assert batcher.stop(PATIENCE)


def test_failed_warm_up_answers_what_was_queued_before_it() -> None:
    def fail() -> None:
        raise RuntimeError("no such device")

    batcher: Batcher[int, int] = Batcher(lambda batch: batch, BatchPolicy(1), 8, warm_up=fail)
    with batcher.admit() as slot:
        (future,) = slot.submit([1])
        batcher.start()
        with pytest.raises(BatcherStopped):
            future.result(PATIENCE)
    assert not batcher.warm
    assert not batcher.alive


def test_warm_up_comes_first_and_in_the_worker_thread(
    device: Device, make_batcher: MakeBatcher
) -> None:
    seen: list[str] = []
    batcher = make_batcher(
        start=False, warm_up=lambda: seen.append(threading.current_thread().name)
    )
    with batcher.admit() as slot:
        (future,) = slot.submit([1])
        assert not batcher.warm
        batcher.start()
        future.result(PATIENCE)
    assert batcher.warm
    assert seen == ["segvlm-device"]


def test_stop_without_start_answers_what_is_queued() -> None:
    batcher: Batcher[int, int] = Batcher(lambda batch: batch, BatchPolicy(1), 8)
    with batcher.admit() as slot:
        (future,) = slot.submit([1])
        assert batcher.stop(PATIENCE)
        with pytest.raises(BatcherStopped):
            future.result(PATIENCE)


def test_observer_sees_every_batch_and_cannot_kill_the_worker(device: Device) -> None:
    reports: list[BatchReport] = []

    def observe(report: BatchReport) -> None:
        reports.append(report)
        raise KeyError("an observer's own fault")

    batcher: Batcher[int, int] = Batcher(device.run, BatchPolicy(4), 8, on_batch=observe)
    batcher.start()
    for numbers in ([1, 2], [3]):
        with batcher.admit() as slot:
            for future in slot.submit(numbers):
                future.result(PATIENCE)
    assert batcher.stop(PATIENCE)
    assert [report.size for report in reports] == [2, 1]
    assert [len(report.waited) for report in reports] == [2, 1]


def test_every_item_gets_exactly_one_answer_under_load(
    device: Device, make_batcher: MakeBatcher
) -> None:
    """Many callers, poison among the items, some callers leave: nothing is lost or doubled."""
    batcher = make_batcher(max_batch_size=3, max_images=100)
    device.poison = {number for number in range(200) if number % 17 == 0}
    answers: dict[int, str] = {}
    lock = threading.Lock()

    def call(caller: int) -> None:
        numbers = range(10 * caller, 10 * caller + 10)
        with batcher.admit() as slot:
            futures = slot.submit(list(numbers))
            for number, future in zip(numbers, futures, strict=True):
                if caller % 5 == 4 and number % 10 == 3:
                    break  # leaves while the rest may be queued, running or done
                try:
                    right = future.result(PATIENCE).result == 2 * number
                    answer = "right" if right else "wrong"
                except ZeroDivisionError:
                    answer = "poison"
                except CancelledError:
                    answer = "cancelled"
                with lock:
                    assert number not in answers
                    answers[number] = answer

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    stayed = [n for n in range(200) if not (n // 10 % 5 == 4 and n % 10 >= 3)]
    assert answers == {n: "poison" if n % 17 == 0 else "right" for n in stayed}
    assert batcher.images == 0
