"""Stages as CUDA graphs: the kernels of a stage and batch size are launched by one call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from service.backends.torch_stages import TensorStages

_WARM_UP = 3
"""Runs before a capture: cuDNN chooses, Triton compiles, and neither may happen in one."""


class GraphedStages:
    """`TensorStages` that are captured at their first call with each batch size, then replayed.

    All captures and replays come from one thread and one stream. So all graphs can share one pool
    of memory although a graph's outputs may lie where another one has scratch memory: they are
    copied out, by the same stream, before the next replay begins.
    """

    def __init__(self, stages: TensorStages) -> None:
        self._stages = stages
        self._graphs: dict[tuple[str, int], _Graph] = {}
        self._pool: Any = torch.cuda.graph_pool_handle()

    def encode_image(self, image: Tensor) -> Sequence[Tensor]:
        return self._replay("encode_image", self._stages.encode_image, image)

    def encode_text(self, tokens: Tensor) -> Sequence[Tensor]:
        return self._replay("encode_text", self._stages.encode_text, tokens)

    def decode(self, *features: Tensor) -> Tensor:
        (logits,) = self._replay("decode", lambda *x: (self._stages.decode(*x),), *features)
        return logits

    def release_memory(self) -> None:
        """Drop every graph and its memory; sizes that are asked for again are captured again."""
        torch.cuda.current_stream().synchronize()  # no replay may be under way
        self._graphs.clear()
        self._pool = torch.cuda.graph_pool_handle()
        self._stages.release_memory()

    def _replay(
        self, name: str, stage: Callable[..., Sequence[Tensor]], *inputs: Tensor
    ) -> Sequence[Tensor]:
        key = name, len(inputs[0])
        if key not in self._graphs:
            self._graphs[key] = _Graph(stage, inputs, self._pool)
        return self._graphs[key](*inputs)


class _Graph:
    """One stage for one batch size; `outputs` are the same tensors after every call."""

    def __init__(
        self, stage: Callable[..., Sequence[Tensor]], inputs: Sequence[Tensor], pool: Any
    ) -> None:
        self._inputs = [value.clone() for value in inputs]
        for _ in range(_WARM_UP):
            stage(*self._inputs)
        stream = torch.cuda.current_stream()
        stream.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        # Another thread may wait for an event or take pinned memory meanwhile.
        with torch.cuda.graph(
            self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"
        ):
            self._outputs = stage(*self._inputs)

    def __call__(self, *inputs: Tensor) -> Sequence[Tensor]:
        for own, given in zip(self._inputs, inputs, strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._outputs
