"""Where tensors live and in which order they are computed: the CPU, or one stream of one GPU."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.backends.base import PendingLogits
from service.backends.device_errors import guarded
from service.backends.load_options import DeviceChoice

Result = TypeVar("Result")


def cuda_devices() -> int:
    """How many CUDA devices this torch can use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def find_device(backend: str, choice: DeviceChoice) -> torch.device:
    """The device that `choice` means; auto prefers the first GPU.

    Raises ValueError if there is no such device.
    """
    count = cuda_devices()
    if choice.kind == "cpu" or (choice.kind == "auto" and not count):
        return torch.device("cpu")
    if choice.index < count:
        return torch.device("cuda", choice.index)
    found = (
        f"sees {count} CUDA device{'s' if count > 1 else ''}" if count else "sees no CUDA device"
    )
    raise ValueError(
        f"{backend} cannot run on {choice.kind}:{choice.index}: torch {torch.__version__} {found}; "
        "choose device cpu, or check the driver with nvidia-smi, the container's access to the GPU "
        "and that torch was built for CUDA"
    )


class TorchDevice:
    """One device for one thread. On a GPU all work goes to one stream of its own.

    That one stream is what makes memory safe to reuse: a tensor that is freed while a kernel still
    reads it goes back to the stream's own pool, where only later work of the same stream gets it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(self, function: Callable[[], Result]) -> Result:
        """`function()`, whose work is queued on this device, without gradients.

        Raises `OutOfMemory` and `DeviceLost` instead of what torch or ONNX Runtime say. Let
        `function` keep its tensors in frames of its own: see `guarded`.
        """
        return guarded(lambda: self._queue(function), self.answers)

    def _queue(self, function: Callable[[], Result]) -> Result:
        ours = nullcontext() if self.stream is None else torch.cuda.stream(self.stream)
        with torch.inference_mode(), ours:
            return function()

    def settle(self) -> None:
        """Wait for all that is queued: what other streams have made may then be read by this."""
        if self.stream is not None:
            torch.cuda.synchronize(self.device)

    def upload(self, array: NDArray[Any]) -> Tensor:
        """A copy of `array` on this device, of the same shape and type; `array` may be read-only.

        On a GPU the copy is still under way, out of pinned memory: torch's allocator gives that
        memory to nobody before this stream has read it.
        """
        staged = self._host(torch.from_numpy(np.empty(0, array.dtype)).dtype, array.shape)
        np.copyto(staged.numpy(), array)
        return staged.to(self.device, non_blocking=True)

    def download(self, logits: Tensor) -> PendingLogits:
        """Start to copy `logits` to main memory; the answer may be waited for in any thread."""
        if self.stream is None:
            array: NDArray[np.float32] = logits.numpy()
            return lambda: array
        host = self._host(logits.dtype, logits.shape)
        host.copy_(logits, non_blocking=True)
        # The thread that waits shall sleep, not spin.
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record(self.stream)

        def wait() -> NDArray[np.float32]:
            guarded(done.synchronize, self.answers)
            answer: NDArray[np.float32] = host.numpy()
            return answer

        return wait

    def _host(self, dtype: torch.dtype, shape: Any) -> Tensor:
        """Uninitialised main memory, pinned if there is a GPU to copy from or to."""
        return torch.empty(shape, dtype=dtype, pin_memory=self.stream is not None)

    def answers(self) -> bool:
        """Whether the device still completes work: a lost one fails every call."""
        try:
            self.settle()
        except Exception:
            return False
        return True

    def release_memory(self) -> None:
        """Give what torch keeps for later back to the driver, where ONNX Runtime can get it."""
        if self.stream is not None:
            torch.cuda.empty_cache()

    def memory_bytes(self) -> Mapping[str, int]:
        """Of a GPU: what live tensors hold, what torch keeps, what all processes use, what is."""
        if self.stream is None:
            return {}
        free, total = torch.cuda.mem_get_info(self.device)
        return {
            "allocated": torch.cuda.memory_allocated(self.device),
            "reserved": torch.cuda.memory_reserved(self.device),
            "used": total - free,
            "total": total,
        }
