"""What a failing device costs: the fault's own item, some time, or, at worst, the process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from service.batch_policy import BatchPolicy
from service.batch_queue import BatcherStopped
from service.batcher import Batcher, BatcherLimits
from service.device import DeviceLost, OutOfMemory
from tests.service.devices import PATIENCE, Doubler, SlowlyDoubler


def start(device: Doubler, size: int = 8, **limits: float) -> Batcher[int, int]:
    batcher = Batcher[int, int](device, BatchPolicy(size), BatcherLimits(max_images=16, **limits))
    batcher.start()
    return batcher


def ask(batcher: Batcher[int, int], *numbers: int) -> list[int]:
    with batcher.admit() as slot:
        return [one.result for one in slot.submit(numbers).result(PATIENCE)]


# -- memory ------------------------------------------------------------------------------------


def test_out_of_memory_is_answered_by_halves_until_it_fits() -> None:
    device = Doubler()
    device.memory = 2
    batcher = start(device)
    assert ask(batcher, *range(8)) == [2 * number for number in range(8)]
    assert [len(batch) for batch in device.batches] == [8, 4, 4, 2, 2, 2, 2]
    assert device.released >= 1
    assert device.checks == 0
    assert batcher.stop(PATIENCE)


def test_batches_stay_smaller_after_it_and_grow_again() -> None:
    device = Doubler()
    device.memory = 4
    batcher = start(device)
    ask(batcher, *range(8))
    device.batches.clear()
    ask(batcher, *range(8))
    assert [len(batch) for batch in device.batches] == [4, 4]
    device.memory = None
    for _ in range(100):
        ask(batcher, *range(8))
    assert len(device.batches[-1]) == 8
    assert batcher.stop(PATIENCE)


def test_single_item_gets_another_try_after_memory_was_given_back() -> None:
    device = Doubler()
    device.memory, device.memory_after_release = 0, 1
    batcher = start(device)
    assert ask(batcher, 21) == [42]
    assert device.batches == [[21], [21]]
    assert device.released == 1
    assert batcher.stop(PATIENCE)


def test_single_item_that_never_fits_is_answered_with_that() -> None:
    device = Doubler()
    device.memory = 0
    batcher = start(device)
    with pytest.raises(OutOfMemory):
        ask(batcher, 21)
    assert device.batches == [[21], [21]]
    device.memory = None
    assert ask(batcher, 1) == [2]
    assert batcher.stop(PATIENCE)


# -- a device that is at fault itself ----------------------------------------------------------


def test_item_that_fails_alone_has_the_device_checked_at_once() -> None:
    """Not only when the next request comes: until then a broken device would look ready."""
    device = Doubler()
    device.poison, device.sane = {13}, False
    batcher = start(device)
    with pytest.raises(ZeroDivisionError):
        ask(batcher, 13)
    wait_stopped(batcher)
    assert device.checks == 3  # it had its chances
    assert batcher.fault is not None
    assert "nonsense" in batcher.fault


def test_sane_device_is_trusted_again() -> None:
    device = Doubler()
    device.poison = {13}
    batcher = start(device)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            ask(batcher, 13)
        assert ask(batcher, 1) == [2]
    assert device.checks == 3
    assert batcher.alive
    assert batcher.stop(PATIENCE)


@pytest.mark.parametrize("fault", [RuntimeError("by chance"), OutOfMemory("short")])
def test_check_that_fails_once_is_repeated(
    fault: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Doubler()
    device.poison = {13}
    original, faults = device.check, [fault]

    def check() -> None:
        original()
        if faults:
            raise faults.pop()

    monkeypatch.setattr(device, "check", check)
    batcher = start(device)
    with pytest.raises(ZeroDivisionError):
        ask(batcher, 13)
    assert ask(batcher, 1) == [2]
    assert device.checks == 2
    assert device.released == isinstance(fault, OutOfMemory)
    assert batcher.stop(PATIENCE)


@pytest.mark.parametrize("fatal", [DeviceLost("the bus"), SystemExit("the driver")])
def test_lost_device_answers_everyone_at_once(fatal: BaseException) -> None:
    device = Doubler()
    batcher = start(device, size=1)
    device.hold()
    with batcher.admit() as first, batcher.admit() as second:
        futures = [first.submit([1, 2]), second.submit([3])]
        assert device.entered.wait(PATIENCE)
        device.fatal = fatal
        device.gate.set()
        for future in futures:
            with pytest.raises(BatcherStopped):
                future.result(PATIENCE)
        assert not batcher.alive
        with pytest.raises(BatcherStopped, match=r"bus|driver"):
            first.submit([3])
    with pytest.raises(BatcherStopped):
        batcher.admit()
    assert device.batches == [[1]]
    assert batcher.stop(PATIENCE)


def test_device_lost_while_results_are_awaited() -> None:
    device = SlowlyDoubler()
    batcher = start(device, size=1)
    with batcher.admit() as slot:
        running, queued = slot.submit([1]), slot.submit([2, 3])
        assert device.entered.wait(PATIENCE)
        device.late_fault = DeviceLost("illegal address")
        device.done[0].set()
        for future in (running, queued):
            with pytest.raises(BatcherStopped):
                future.result(PATIENCE)
    assert batcher.fault is not None
    assert "illegal address" in batcher.fault
    for event in device.done:
        event.set()
    assert batcher.stop(PATIENCE)


@pytest.mark.parametrize("phase", ["launch", "pending", "check", "warm_up"])
def test_hang_trips_the_watchdog_and_everyone_is_answered(
    phase: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for_ever = threading.Event()

    def hang(*_: Any) -> None:
        for_ever.wait()

    device = SlowlyDoubler() if phase == "pending" else Doubler()
    if phase == "check":
        device.poison = {1}
    if phase != "pending":
        monkeypatch.setattr(device, phase, hang)
    batcher = start(device, size=1, batch_timeout=0.2, warm_up_timeout=0.2)
    with batcher.admit() as slot:
        futures = [slot.submit([1]), slot.submit([2])]
        kinds = set()
        for future in futures:
            with pytest.raises((BatcherStopped, ZeroDivisionError)) as raised:
                future.result(PATIENCE)
            kinds.add(raised.type)
    assert kinds <= {BatcherStopped, ZeroDivisionError}
    assert BatcherStopped in kinds
    assert not batcher.alive
    assert batcher.fault is not None
    assert "took more than 0.2 s" in batcher.fault
    assert not batcher.stop(0.1)  # the thread still hangs, and is not waited for
    for_ever.set()
    for event in getattr(device, "done", []):
        event.set()
    assert batcher.stop(PATIENCE)


def test_late_result_of_a_device_that_was_given_up_disturbs_nobody() -> None:
    device = SlowlyDoubler()
    batcher = start(device, batch_timeout=0.1)
    with batcher.admit() as slot:
        future = slot.submit([1])
        with pytest.raises(BatcherStopped):
            future.result(PATIENCE)
    device.done[0].set()
    assert batcher.stop(PATIENCE)


def test_failed_warm_up_answers_what_was_queued_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    device = Doubler()

    def fail() -> None:
        raise RuntimeError("no such device")

    monkeypatch.setattr(device, "warm_up", fail)
    batcher = Batcher[int, int](device, BatchPolicy(1), BatcherLimits(8))
    with batcher.admit() as slot:
        future = slot.submit([1])
        batcher.start()
        with pytest.raises(BatcherStopped):
            future.result(PATIENCE)
    assert not batcher.warm
    assert batcher.fault == "RuntimeError: no such device"


def wait_stopped(batcher: Batcher[int, int]) -> None:
    assert batcher._queue.wait_closed(PATIENCE)


# -- an asynchronous device --------------------------------------------------------------------


def wait_for(condition: Callable[[], bool]) -> None:
    end = threading.Event()
    for _ in range(int(PATIENCE / 0.002)):
        if condition():
            return
        end.wait(0.002)
    raise AssertionError("waited too long")


def test_full_batch_is_ready_before_the_device_is_free() -> None:
    device = SlowlyDoubler()
    batcher = start(device, size=2)
    with batcher.admit() as slot:
        futures = [slot.submit([number, number]) for number in range(4)]
        wait_for(lambda: len(device.batches) == 2)  # one runs, one is ready, and never a third
        assert batcher.depth == 4
        device.done[0].set()
        wait_for(lambda: len(device.batches) == 3)
        for number in range(1, 4):
            wait_for(lambda number=number: len(device.done) > number)
            device.done[number].set()
        for future in futures:
            future.result(PATIENCE)
    assert batcher.stop(PATIENCE)


def test_batch_that_is_not_full_waits_for_company_while_the_device_is_busy() -> None:
    """By our clock the device is busy for long, so who comes later still joins."""
    now = [0.0]
    device = SlowlyDoubler()
    batcher = Batcher[int, int](
        device, BatchPolicy(8), BatcherLimits(max_images=16), clock=lambda: now[0]
    )
    batcher.start()
    with batcher.admit() as slot:
        first = slot.submit([0])
        wait_for(lambda: len(device.done) == 1)
        now[0] = 10.0
        device.done[0].set()
        first.result(PATIENCE)  # so a batch of one takes ten seconds
        slot.submit([1])
        wait_for(lambda: len(device.done) == 2)
        later = slot.submit([2])
        also = slot.submit([3])
        device.done[1].set()
        wait_for(lambda: len(device.done) == 3)
        device.done[2].set()
        later.result(PATIENCE)
        also.result(PATIENCE)
    assert device.batches == [[0], [1], [2, 3]]
    assert batcher.stop(PATIENCE)


def test_failed_batch_of_an_asynchronous_device_is_run_again_in_the_worker() -> None:
    device = SlowlyDoubler()
    batcher = start(device)
    with batcher.admit() as slot:
        blocker = slot.submit([0])
        wait_for(lambda: len(device.done) == 1)
        future = slot.submit([1, 2])
        device.done[0].set()
        blocker.result(PATIENCE)
        wait_for(lambda: len(device.done) == 2)
        device.late_fault = ValueError("a bad batch")
        device.done[1].set()
        wait_for(lambda: len(device.done) >= 3)
        device.late_fault = None
        device.done[2].set()
        wait_for(lambda: len(device.done) == 4)
        device.done[3].set()
        assert [one.result for one in future.result(PATIENCE)] == [2, 4]
    assert device.batches == [[0], [1, 2], [1], [2]]
    assert batcher.stop(PATIENCE)
