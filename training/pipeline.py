"""Work in three stages of which the middle one owns a device, in order and in bounded memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Answered = TypeVar("Answered")
Finished = TypeVar("Finished")


def pool_size() -> int:
    """Threads beside the one that feeds the device: half the cores, from 1 to 8."""
    return max(1, min(8, (os.cpu_count() or 1) // 2))


def in_three_stages(
    items: Iterable[Item],
    load: Callable[[Item], Loaded],
    run: Callable[[Loaded], Answered],
    finish: Callable[[Answered], Finished],
    threads: int | None = None,
) -> Iterator[Finished]:
    """`finish(run(load(item)))` of every item, in the items' order.

    `run` is called in the caller's thread, one item at a time and in order; `load` and `finish` in
    `threads` others (default `pool_size()`), ahead of it and behind it. At most twice as many items
    as threads wait on either side. An exception of any stage is raised in its item's turn, and
    what was not begun is dropped.
    """
    threads = pool_size() if threads is None else threads
    source, depth = iter(items), 2 * threads
    loading: deque[Future[Loaded]] = deque()
    finishing: deque[Future[Finished]] = deque()
    pool = ThreadPoolExecutor(threads)
    try:
        loading.extend(pool.submit(load, item) for item in islice(source, depth))
        while loading:
            loaded = loading.popleft().result()
            loading.extend(pool.submit(load, item) for item in islice(source, 1))
            if len(finishing) == depth:
                yield finishing.popleft().result()
            finishing.append(pool.submit(finish, run(loaded)))
            while finishing and finishing[0].done():
                yield finishing.popleft().result()
        while finishing:
            yield finishing.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
