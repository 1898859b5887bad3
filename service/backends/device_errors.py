"""Errors of libraries and devices, told apart: out of memory, lost, or of this batch. No torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from service.backends.base import DeviceLost, OutOfMemory

Result = TypeVar("Result")

# How torch, ONNX Runtime, cuBLAS, cuDNN and TensorRT say it. None has a type for it that the
# others share, and ONNX Runtime has none at all.
_MEMORY_PHRASES = (
    "out of memory",
    "outofmemory",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate memory",
    "not enough memory",
    "alloc_failed",
    "bad_alloc",
    "bad allocation",
)


def speaks_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch might have got through."""
    told = f"{type(error).__name__}: {error}".lower()
    if isinstance(error, MemoryError) or any(phrase in told for phrase in _MEMORY_PHRASES):
        return True
    # A capture that runs out of memory ends with an error of the capture. But what was raised
    # while an earlier batch's error was handled has nothing to do with that.
    before = error.__context__
    return before is not None and not _is_told(before) and speaks_of_memory(before)


def _is_told(error: BaseException) -> bool:
    return isinstance(error, OutOfMemory | DeviceLost)


def guarded(function: Callable[[], Result], answers: Callable[[], bool] = lambda: True) -> Result:
    """`function()`; its errors become `OutOfMemory` or `DeviceLost` where they are that.

    `answers` is asked after any other error: whether the device still completes work. After an
    illegal address, a failed launch or an uncorrectable memory error a CUDA device fails every
    call that follows, in the whole process.
    """
    try:
        return function()
    except Exception as error:
        if _is_told(error):
            raise
        if speaks_of_memory(error):
            told: Exception = OutOfMemory(f"{type(error).__name__}: {error}")
        elif answers():
            raise
        else:
            told = DeviceLost(f"{type(error).__name__}: {error}")
    # Outside of the handler, so that the old error ends here: its traceback holds the batch's
    # tensors, and with them the memory that the next try needs. (A context manager could not do
    # this: the error that it exits with is alive in its caller.)
    raise told
