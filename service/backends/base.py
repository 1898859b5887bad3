"""What a backend is: the model's three stages, and what comes with them.

What the two encoders make stays where the backend computes (a GPU's memory, or arrays), one
`Features` for each image and each expression. The service only keeps these, counts their bytes and
hands them back; pixels and tokens go in as numpy arrays, logits come out as numpy arrays.

Axis letters: B = images, N = (image, expression) pairs or expressions, S = side of the square,
L = word length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.calibration import ScoreMap
from model.probe import Probe
from model.tokenizer import TokenizedTexts
from service.device import DeviceLost as DeviceLost
from service.device import OutOfMemory as OutOfMemory

Precision = Literal["fp32", "fp16", "bf16", "int8"]
"""What the model computes in. Logits are float32 whatever it is."""

PendingLogits = Callable[[], NDArray[np.float32]]
"""Waits until the device is done, then answers logits (N, S/4, S/4). Called once, in any thread."""


class Features(Protocol):
    """What a stage made of one image or one expression. Immutable: several batches may read it."""

    @property
    def nbytes(self) -> int:
        """Bytes that are held as long as this object lives."""
        ...


Held = TypeVar("Held", bound=Features)
"""The kind of `Features` of one backend."""


class Backend(Protocol[Held]):
    """The three stages. All calls come from one thread, the one that owns the device.

    A stage may raise `OutOfMemory` (the batch is halved), `DeviceLost` (the process ends) or
    anything else (the items are run alone, and the one that fails is answered with an error).
    Inputs are never mutated.
    """

    @property
    def name(self) -> str:
        """What runs the model, for people and metrics, such as `onnx-cpu`."""
        ...

    @property
    def precision(self) -> Precision:
        """What it computes in."""
        ...

    @property
    def asynchronous(self) -> bool:
        """The stages return before the device is done; then batches are prepared ahead."""
        ...

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The sizes to warm up, rising; the last is the largest batch that will be asked for."""
        ...

    def encode_image(self, images: NDArray[np.uint8]) -> Sequence[Held]:
        """uint8 RGB (B, S, S, 3) -> the pyramid of each image."""
        ...

    def encode_text(self, tokens: NDArray[np.int64]) -> Sequence[Held]:
        """int64 (N, L) -> words, sentence state and padding of each expression."""
        ...

    def decode(self, images: Sequence[Held], texts: Sequence[Held]) -> PendingLogits:
        """Expression i on image i, N of each."""
        ...

    def release_memory(self) -> None:
        """Give back what only serves speed; called after `OutOfMemory`, before the next try."""
        ...

    def memory_bytes(self) -> Mapping[str, int]:
        """Bytes of the device's memory by kind; empty on a CPU. From any thread."""
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
    score_map: ScoreMap | None = None
    """From how sure a map is of its mask to the expected IoU; None where nobody measured it."""


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A backend that is ready to be warmed up, with its tokenizer and its test question."""

    spec: ModelSpec
    backend: Backend[Any]
    tokenizer: TextTokenizer
    probe: Probe
    """A question with its right answer: asked before the first request, and after a failure."""


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to run a bundle. Each backend refuses what it cannot do with a ValueError."""

    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `tensorrt`, `tensorrt:1`."""
    precision: Literal["auto", "fp32", "fp16", "bf16", "int8"] = "auto"
    threads: int = 0
    """Cores that the model uses on a CPU, 0 = all that the process may run on."""
    max_batch_size: int | None = None
    """None: what suits the device."""
    compile: bool = True
    """Let the backend compile the model, where it can; starting takes longer."""
