"""Errors of a device: which halve a batch, which end the process, which are the batch's own."""

from __future__ import annotations

import weakref
from typing import NoReturn

import numpy as np
import pytest
import torch

from service.backends.base import DeviceLost, OutOfMemory
from service.backends.device_errors import guarded


class OutOfMemoryError(RuntimeError):
    """As torch calls it."""


def fail(error: BaseException) -> NoReturn:
    raise error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OutOfMemoryError("Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError(
            "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : Non-zero status code returned while "
            "running Conv node. BFCArena::AllocateRawInternal Failed to allocate memory for "
            "requested buffer of size 1073741824"
        ),
        RuntimeError("[ONNXRuntimeError] : 1 : FAIL : CUDA failure 2: out of memory ; GPU=0"),
        RuntimeError("std::bad_alloc"),
    ],
)
def test_no_memory(error: Exception) -> None:
    with pytest.raises(OutOfMemory, match=type(error).__name__):
        guarded(lambda: fail(error), lambda: False)


def test_no_memory_behind_another_error() -> None:
    """A CUDA graph's capture that runs out of memory ends with an error of its own."""

    def capture() -> None:
        try:
            raise OutOfMemoryError("Tried to allocate 2 GiB")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error")

    with pytest.raises(OutOfMemory, match="previous error"):
        guarded(capture)


def test_a_retry_is_not_taken_for_the_first_try() -> None:
    try:
        raise OutOfMemory("the whole batch")
    except OutOfMemory:
        with pytest.raises(ValueError, match="bad item"):
            guarded(lambda: fail(ValueError("bad item")))


def test_no_memory_in_earnest() -> None:
    with pytest.raises(OutOfMemory, match="allocate"):
        guarded(lambda: torch.empty(1 << 60))
    with pytest.raises(OutOfMemory, match="allocate"):
        guarded(lambda: np.ones(1 << 58))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError(
            "[ONNXRuntimeError] : 1 : FAIL : CUDA failure 719: unspecified launch failure"
        ),
    ],
)
def test_a_device_is_lost_if_it_answers_no_more(error: Exception) -> None:
    with pytest.raises(DeviceLost, match="RuntimeError: "):
        guarded(lambda: fail(error), lambda: False)
    with pytest.raises(RuntimeError) as caught:
        guarded(lambda: fail(error), lambda: True)
    assert caught.value is error


@pytest.mark.parametrize("error", [OutOfMemory("full"), DeviceLost("gone"), KeyboardInterrupt()])
def test_what_is_plain_already_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        guarded(lambda: fail(error), lambda: False)
    assert caught.value is error


def test_answers_pass() -> None:
    assert guarded(lambda: 7, lambda: False) == 7


def test_an_error_of_memory_does_not_hold_the_memory() -> None:
    """While it is handled, the next try needs what the failed one had."""
    held: list[weakref.ref[torch.Tensor]] = []

    def stage() -> None:
        batch = torch.zeros(3)
        held.append(weakref.ref(batch))
        raise RuntimeError("CUDA out of memory")

    with pytest.raises(OutOfMemory) as caught:
        guarded(stage)
    assert caught.value.__context__ is None  # the error is still alive
    assert held[0]() is None
