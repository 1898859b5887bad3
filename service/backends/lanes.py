"""The rows of a batch on the cores of a CPU: a core for each row beats all cores for every row.

Threads that share an operator wait for each other at its end, and all of them for one that the
system has given to other work, such as decoding the next image. Rows in lanes of their own wait
for nobody. Measured in `docs/performance.md`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import pairwise
from typing import TypeVar

Result = TypeVar("Result")


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def plan(rows: int, cores: int) -> tuple[list[slice], slice | None]:
    """Which rows run in lanes, side by side, and which together on all cores after them.

    Lanes in full rounds, and a last round too if it keeps more than half of the cores busy. The
    slices are in order and cover `rows`.
    """
    rest = rows % cores
    alone = rows if 2 * rest > cores else rows - rest
    lanes = min(cores, alone)
    bounds = [alone * lane // lanes for lane in range(lanes + 1)] if lanes else []
    together = slice(alone, rows) if alone < rows else None
    return [slice(*pair) for pair in pairwise(bounds)], together


class Lanes:
    """Splits work by rows among `cores` threads, of which the caller is one."""

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self._pool = ThreadPoolExecutor(max(1, cores - 1), thread_name_prefix="segvlm-lane")

    def run(
        self,
        rows: int,
        alone: Callable[[slice], Result],
        together: Callable[[slice], Result],
    ) -> list[Result]:
        """What the parts of `rows` give, in order: `alone` uses one core, `together` all.

        Raises what a part raises, after all that have begun have ended.
        """
        lanes, rest = plan(rows, self.cores)
        results = []
        if lanes:
            futures = [self._pool.submit(alone, part) for part in lanes[1:]]
            try:
                results.append(alone(lanes[0]))
            finally:
                wait(futures)
            results += [future.result() for future in futures]
        if rest is not None:
            results.append(together(rest))
        return results
