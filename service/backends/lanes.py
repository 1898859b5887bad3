"""The rows of a batch on the cores of a CPU: a core for each row beats all cores for every row.

Threads that share an operator wait for each other at its end, and all of them for one that the
system has given to other work, such as decoding the next image. A row on a core of its own waits
for nobody, and needs the memory of one row. Measured in `docs/performance.md`.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from typing import TypeVar

Result = TypeVar("Result")

_NICE = 5
"""Of these threads: decoding an image or making a mask takes milliseconds and goes first."""


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def rows_alone(rows: int, cores: int) -> int:
    """How many of `rows` get a core each; those after them run together on all cores.

    Full rounds do, and a last round too if it keeps more than half of the cores busy.
    """
    rest = rows % cores
    return rows if 2 * rest > cores else rows - rest


class Lanes:
    """As many threads as `cores`, each with a row at a time, and of lower priority than others."""

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self._pool = ThreadPoolExecutor(
            cores, thread_name_prefix="segvlm-lane", initializer=_give_way
        )

    def call(self, function: Callable[[], Result]) -> Result:
        """`function()` in one of the threads; threads that it starts have the same priority."""
        return self._pool.submit(function).result()

    def run(
        self,
        rows: int,
        alone: Callable[[slice], Result],
        together: Callable[[slice], Result],
    ) -> list[Result]:
        """What the parts of `rows` give, in order: `alone` uses one core, `together` all.

        Raises what a part raises, after all that have begun have ended.
        """
        single = rows_alone(rows, self.cores)
        futures = [self._pool.submit(alone, slice(row, row + 1)) for row in range(single)]
        wait(futures, return_when=FIRST_EXCEPTION)
        for future in futures:
            future.cancel()  # after an error nobody needs the rest
        wait(futures)
        results = [future.result() for future in futures]
        if single < rows:
            results.append(self.call(partial(together, slice(single, rows))))
        return results


def _give_way() -> None:
    """Lower the priority of this thread, where it is a thread's own and a sandbox lets it be."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICE)
