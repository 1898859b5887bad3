"""Three stages keep the order, bound what waits, and pass on what goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from training.pipeline import in_three_stages, pool_size


def same(item: int) -> int:
    return item


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 5, 40])
def test_results_come_in_the_order_of_the_items(threads: int, count: int) -> None:
    ran: list[int] = []

    def run(item: int) -> int:
        ran.append(item)
        return 10 * item

    results = list(in_three_stages(range(count), same, run, lambda each: each + 1, threads))
    assert ran == list(range(count))
    assert results == [10 * item + 1 for item in range(count)]


def test_the_middle_stage_has_the_callers_thread_and_the_others_do_not() -> None:
    here = threading.get_ident()

    def tell(item: list[int]) -> list[int]:
        return [*item, threading.get_ident()]

    for loaded, ran, finished in in_three_stages([[] for _ in range(9)], tell, tell, tell, 2):
        assert ran == here
        assert here not in (loaded, finished)


class LastMinute:
    """A thread pool that does nothing before a result is asked for."""

    def __init__(self, threads: int) -> None:
        assert threads == 2
        self._work: Callable[[], int] = int

    def submit(self, task: Callable[[int], int], item: int) -> LastMinute:
        future = LastMinute(2)
        future._work = lambda: task(item)
        return future

    def done(self) -> bool:
        return False

    def result(self) -> int:
        return self._work()

    def shutdown(self, cancel_futures: bool) -> None:
        assert cancel_futures


def test_no_more_is_taken_than_can_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.pipeline.ThreadPoolExecutor", LastMinute)
    taken: list[int] = []
    ran: list[int] = []
    got: list[int] = []
    not_run: list[int] = []
    not_finished: list[int] = []

    def items() -> Iterator[int]:
        for item in range(40):
            taken.append(item)
            yield item

    def run(item: int) -> int:
        ran.append(item)
        not_run.append(len(taken) - len(ran))
        not_finished.append(len(ran) - len(got))
        return item

    for result in in_three_stages(items(), same, run, same, threads=2):
        got.append(result)
    assert got == list(range(40))
    assert max(not_run) == 4
    assert max(not_finished) <= 5


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_an_exception_comes_in_its_items_turn(stage: int) -> None:
    begun: list[int] = []

    def load(item: int) -> int:
        begun.append(item)
        return item

    def fail_at_three(item: int) -> int:
        if item == 3:
            raise RuntimeError("three")
        return item

    def load_or_fail(item: int) -> int:
        return fail_at_three(load(item)) if stage == 0 else load(item)

    run, finish = (fail_at_three if stage == number else same for number in (1, 2))
    results = in_three_stages(range(1000), load_or_fail, run, finish, 2)
    if stage == 2:  # all before it are out by then
        assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="three"):
        list(results)
    assert len(begun) < 30


def test_half_the_cores_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for cores, threads in ((None, 1), (1, 1), (2, 1), (8, 4), (64, 8)):
        monkeypatch.setattr("os.cpu_count", lambda cores=cores: cores)
        assert pool_size() == threads
