"""Stages compiled by TorchInductor, once for one row and once for any larger batch."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import mark_dynamic
from torch._dynamo.exc import TorchDynamoException

from service.backends.torch_stages import TensorStages

_log = logging.getLogger(__name__)


class CompiledStages:
    """`TensorStages` that are compiled at their first call, and run as they are where that fails.

    A failure is logged, not raised: the answers are the same, only slower.
    """

    def __init__(
        self, stages: TensorStages, compiler: str | Callable[..., Any] = "inductor"
    ) -> None:
        """`compiler` as in `torch.compile(backend=...)`."""
        self._stages = stages
        self._compiled: dict[str, Callable[..., Any]] = {
            name: torch.compile(getattr(stages, name), backend=compiler)
            for name in ("encode_image", "encode_text", "decode")
        }

    def encode_image(self, image: Tensor) -> Sequence[Tensor]:
        outputs: Sequence[Tensor] = self._run("encode_image", image)
        return outputs

    def encode_text(self, tokens: Tensor) -> Sequence[Tensor]:
        outputs: Sequence[Tensor] = self._run("encode_text", tokens)
        return outputs

    def decode(self, *features: Tensor) -> Tensor:
        logits: Tensor = self._run("decode", *features)
        return logits

    def release_memory(self) -> None:
        self._stages.release_memory()

    def _run(self, name: str, *inputs: Tensor) -> Any:
        if len(inputs[0]) > 1:  # a batch of one is compiled on its own
            for value in inputs:
                mark_dynamic(value, 0)
        try:
            return self._compiled[name](*inputs)
        except TorchDynamoException as error:
            _log.warning("%s is not compiled and runs slower: %s", name, error)
            self._compiled[name] = getattr(self._stages, name)
            return self._compiled[name](*inputs)
