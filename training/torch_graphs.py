"""A network in torch, or its TorchScript files, with the interface of `OnnxGraphs`; on the CPU.

M = images, N = expressions, P = pairs of the two, S = input side, L = word length.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from model.segvlm import SegVLM

from .onnx_graphs import Array

Stage = Callable[..., Any]


class TorchGraphs:
    """Three stages that take and give tensors on the CPU, in evaluation mode."""

    def __init__(self, image: Stage, text: Stage, decoder: Stage) -> None:
        self._image, self._text, self._decoder = image, text, decoder

    @classmethod
    def of_network(cls, model: SegVLM) -> TorchGraphs:
        """The network itself: the reference for everything that is exported."""
        return cls(model.encode_image, model.encode_text, model.decode)

    @classmethod
    def of_torchscript(cls, files: Sequence[Path]) -> TorchGraphs:
        """The image encoder, text encoder and mask decoder of three files."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # that torch.export is newer
            image, text, decoder = (
                torch.jit.load(str(file), map_location="cpu")  # type: ignore[no-untyped-call]
                for file in files
            )
        return cls(image, text, decoder)

    def encode_image(self, images: Array) -> list[Array]:
        """images (M, S, S, 3) uint8 -> p3, p4, p5."""
        return _arrays(self._image, images)

    def encode_text(self, tokens: Array) -> list[Array]:
        """tokens (N, L) int64 -> words, state, pad_mask."""
        return _arrays(self._text, tokens)

    def decode(self, pyramid: Sequence[Array], text: Sequence[Array]) -> Array:
        """Levels and parts, P rows each -> logits (P, S/4, S/4) float32."""
        return _arrays(self._decoder, *pyramid, *text)[0]


@torch.inference_mode()
def _arrays(stage: Stage, *inputs: Array) -> list[Array]:
    outputs = stage(*(torch.from_numpy(value) for value in inputs))
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [value.numpy() for value in outputs]
