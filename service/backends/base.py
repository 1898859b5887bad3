"""What a backend is: the model's three stages over numpy arrays, and what comes with them.

Axis letters: B = images, N = (image, expression) pairs or expressions, S = side of the square,
L = word length, C and D = the model's own widths.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from model.tokenizer import TokenizedTexts

Floats = NDArray[np.floating[Any]]


class Backend(Protocol):
    """The three stages. All calls come from one thread, the one that owns the device.

    A stage may raise anything: the batcher runs a failed batch again item by item and answers
    the one that failed. Inputs are never mutated; outputs belong to the caller.
    """

    @property
    def name(self) -> str:
        """What runs the model, for people and metrics, such as `onnx-cpu`."""
        ...

    def encode_image(self, images: NDArray[np.uint8]) -> tuple[Floats, Floats, Floats]:
        """uint8 RGB (B, S, S, 3) -> the pyramid p3, p4, p5 at strides 8, 16, 32, batch first."""
        ...

    def encode_text(self, tokens: NDArray[np.int64]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        """int64 (N, L) -> words (N, L, C), state (N, D), pad_mask (N, L) with True = padding."""
        ...

    def decode(
        self,
        p3: Floats,
        p4: Floats,
        p5: Floats,
        words: Floats,
        state: Floats,
        pad_mask: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        """N pyramids and N texts -> logits (N, S/4, S/4)."""
        ...


class TextTokenizer(Protocol):
    """`model.tokenizer.Tokenizer`, or the fake's own."""

    def encode(self, texts: Sequence[str], length: int) -> TokenizedTexts:
        """N texts -> tokens int64 (N, length) and which of them were cut short."""
        ...


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What the service must know of a model, whatever runs it."""

    name: str
    version: str
    image_size: int
    word_length: int
    threshold: float


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A backend that is ready to be warmed up, with its tokenizer."""

    spec: ModelSpec
    backend: Backend
    tokenizer: TextTokenizer
