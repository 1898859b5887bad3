"""Rows in lanes: all of them once, in order, on as many cores as there are, failures included."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.backends.lanes import Lanes, rows_alone

SIZES = st.integers(1, 40)


@settings(deadline=None, max_examples=50)  # it starts threads
@given(SIZES, SIZES)
def test_every_row_runs_once_and_in_order(rows: int, cores: int) -> None:
    lanes, alone = Lanes(cores), rows_alone(rows, cores)
    parts = lanes.run(rows, lambda part: part, lambda part: part)
    assert [row for part in parts for row in range(rows)[part]] == list(range(rows))
    assert len(parts) == alone + (alone < rows)


@pytest.mark.parametrize(
    ("rows", "cores", "alone"),
    [(1, 2, 0), (2, 2, 2), (3, 2, 2), (8, 2, 8), (1, 1, 1), (5, 1, 5), (2, 4, 0), (3, 4, 3)],
)
def test_a_round_that_leaves_cores_idle_runs_on_all_together(
    rows: int, cores: int, alone: int
) -> None:
    assert rows_alone(rows, cores) == alone


def test_lanes_run_side_by_side() -> None:
    met = threading.Barrier(3)

    def meet(part: slice) -> int:
        met.wait(10)
        return int(part.start)

    assert Lanes(3).run(3, meet, meet) == [0, 1, 2]


@pytest.mark.parametrize("failing", [0, 1])
def test_an_error_is_raised_when_nothing_runs_any_more(failing: int) -> None:
    lanes, slow, began, ended = Lanes(2), threading.Event(), set(), set()

    def work(part: slice) -> None:
        began.add(part.start)
        if part.start == failing:
            slow.set()
            raise MemoryError("none is left")
        slow.wait(10)
        threading.Event().wait(0.05)
        ended.add(part.start)

    with pytest.raises(MemoryError, match="none is left"):
        lanes.run(500, work, work)
    assert began == ended | {failing}
    assert len(began) < 500, "nobody needs the rest"
    assert lanes.run(2, lambda part: part.start, lambda part: -1) == [0, 1]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere priorities are not of threads")
def test_work_beside_the_model_goes_first() -> None:
    """Also before the threads that a session starts, which have the priority of who opens it."""

    def priority(_: object = None) -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    def of_a_thread_of_its_own() -> int:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(priority).result()

    lanes, ours = Lanes(2), priority()
    assert lanes.call(of_a_thread_of_its_own) > ours
    assert min(lanes.run(3, priority, priority)) > ours
    assert priority() == ours
