"""CUDA graphs on the CPU: the same calls, and the same hazards, for tests without a GPU.

A capture records the operations and the tensors that they read and wrote. A replay runs them again
on the very same tensors, so it sees only what was copied into its inputs and overwrites what it
gave out before, as on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from service.backends.base import PendingLogits
from service.backends.torch_device import TorchDevice


class SimulatedGraph(TorchDispatchMode):
    """`torch.cuda.CUDAGraph`; while it is entered it records."""

    def __init__(self) -> None:
        super().__init__()
        self._recorded: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func._schema.is_mutable or not _is_view(result, args):
            self._recorded.append((func, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        for func, args, kwargs, before in self._recorded:
            result = func(*args, **kwargs)
            if not func._schema.is_mutable:
                for old, new in zip(tree_leaves(before), tree_leaves(result), strict=True):
                    if isinstance(old, Tensor):
                        old.copy_(new)


def _is_view(result: Any, args: Any) -> bool:
    """Whether nothing was computed, but the memory of an argument given another shape."""
    given = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if isinstance(t, Tensor)}
    made = [t.untyped_storage().data_ptr() for t in tree_leaves(result) if isinstance(t, Tensor)]
    return bool(made) and given.issuperset(made)


class _Stream:
    def synchronize(self) -> None:
        pass


@contextmanager
def _capture(
    graph: SimulatedGraph, pool: object, stream: object, capture_error_mode: str
) -> Iterator[None]:
    assert pool is not None and isinstance(stream, _Stream)
    assert capture_error_mode == "thread_local"
    with graph:
        yield


class CopyingDevice(TorchDevice):
    """The CPU, whose answers are copied as those of a GPU are."""

    def download(self, logits: Tensor) -> PendingLogits:
        return super().download(logits.clone())


def simulate_cuda_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the simulation in the place of torch's own."""
    stream = _Stream()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", SimulatedGraph)
    monkeypatch.setattr(torch.cuda, "graph", _capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", object)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
