"""How the C library keeps the process's memory. Where it is not glibc, nothing is changed."""

from __future__ import annotations

import ctypes
import sys

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
_LARGE = 128 * 1024
_ARENAS = 2


def return_large_blocks() -> bool:
    """Let the memory of every large block go back to the system when it is freed.

    glibc otherwise raises its threshold with the first large photo that it frees. From then on
    photos, which live for milliseconds, lie among features that stay for hours, in a heap for each
    thread, and the heaps grow full of holes. Small blocks get two heaps, not one for each thread.
    Returns whether the C library took it.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE) and mallopt(_M_ARENA_MAX, _ARENAS))
