"""Probability maps at a photo's own size, from a network in torch or from an exported bundle.

Both predictors encode the photo once for all of its phrases, and use the letterbox and its inverse
of `model.preprocess`, as the service does. N = phrases, S = input side, L = word length.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.calibration import agreement
from model.preprocess import Letterbox, letterbox_image, restore_probability, sigmoid
from model.segvlm import SegVLM
from model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from model.bundle import Bundle
    from training.parity import Graphs

Probabilities = list[NDArray[np.float32]]
Prepared = TypeVar("Prepared")
Answer = TypeVar("Answer")


class Predictor(Protocol):
    """Anything that turns a photo and phrases into masks."""

    def predict(self, image: NDArray[np.uint8], phrases: Sequence[str]) -> Probabilities:
        """Segment one photo.

        `image`: uint8 RGB (H, W, 3). Returns for each phrase, in order, a float32 map (H, W) of
        probabilities at the photo's original size.
        """
        ...


class StagedPredictor(ABC, Generic[Prepared, Answer]):
    """A predictor in three stages, of which `answer` alone needs the device.

    `prepare` and `restore` may run in other threads, for photos ahead of and behind the one that
    the device works on.
    """

    @abstractmethod
    def prepare(self, image: NDArray[np.uint8], phrases: Sequence[str]) -> Prepared:
        """What the device needs; `image` uint8 RGB (H, W, 3), at least one phrase."""

    @abstractmethod
    def answer(self, prepared: Prepared) -> Answer:
        """The device's work, which may still be on its way when this returns."""

    @abstractmethod
    def restore(self, answer: Answer) -> Iterator[NDArray[np.float32]]:
        """Wait for the device; then each phrase's map float32 (H, W), made when it is asked for."""

    def agreements(self, answer: Answer, threshold: float) -> Sequence[float] | None:
        """Of each phrase how sure its map is of its own mask, see `model.calibration.agreement`.

        None where the predictor cannot tell.
        """
        return None

    def predict(self, image: NDArray[np.uint8], phrases: Sequence[str]) -> Probabilities:
        """See `Predictor`."""
        if not phrases:
            return []
        return list(self.restore(self.answer(self.prepare(image, phrases))))


class InOnePiece(StagedPredictor[tuple[NDArray[np.uint8], Sequence[str]], Probabilities]):
    """Any predictor as a staged one; all of its work is the device's."""

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    def prepare(
        self, image: NDArray[np.uint8], phrases: Sequence[str]
    ) -> tuple[NDArray[np.uint8], Sequence[str]]:
        return image, phrases

    def answer(self, prepared: tuple[NDArray[np.uint8], Sequence[str]]) -> Probabilities:
        return self._predictor.predict(*prepared)

    def restore(self, answer: Probabilities) -> Iterator[NDArray[np.float32]]:
        return iter(answer)


class Question(NamedTuple):
    """A photo and phrases for the network: square (S, S, 3) uint8, tokens (N, L) int64."""

    square: NDArray[np.uint8]
    tokens: NDArray[np.int64]
    geometry: Letterbox


Logits = Tensor | NDArray[np.float32]
"""(N, S/4, S/4)."""


class _NetworkPredictor(StagedPredictor[Question, tuple[Logits, Letterbox]]):
    """Letterbox, network, and the letterbox's inverse."""

    def __init__(self, tokenizer: Tokenizer, image_size: int, word_length: int) -> None:
        self._tokenizer = tokenizer
        self._image_size = image_size
        self._word_length = word_length

    def prepare(self, image: NDArray[np.uint8], phrases: Sequence[str]) -> Question:
        """See `StagedPredictor`."""
        square, geometry = letterbox_image(image, self._image_size)
        tokens = self._tokenizer.encode(phrases, self._word_length).tokens
        return Question(square, tokens, geometry)

    def answer(self, prepared: Question) -> tuple[Logits, Letterbox]:
        """See `StagedPredictor`."""
        return self._logits(prepared.square, prepared.tokens), prepared.geometry

    def restore(self, answer: tuple[Logits, Letterbox]) -> Iterator[NDArray[np.float32]]:
        """See `StagedPredictor`."""
        logits, geometry = answer
        return (restore_probability(sigmoid(each), geometry) for each in _array(logits))

    def agreements(self, answer: tuple[Logits, Letterbox], threshold: float) -> Sequence[float]:
        """See `StagedPredictor`."""
        return [agreement(sigmoid(each), threshold) for each in _array(answer[0])]

    @abstractmethod
    def _logits(self, square: NDArray[np.uint8], tokens: NDArray[np.int64]) -> Logits:
        """Encode the photo once, and all phrases on it."""


class TorchPredictor(_NetworkPredictor):
    """Runs a SegVLM on a torch device; puts it into evaluation mode and leaves it there.

    `batch_size`: phrases decoded together. `autocast`: bfloat16 where torch considers it safe, for
    CUDA devices only (torchvision's deformable convolution has no bfloat16 on the CPU); other
    devices raise ValueError.
    """

    def __init__(
        self,
        model: SegVLM,
        tokenizer: Tokenizer,
        device: torch.device | str = "cpu",
        batch_size: int = 32,
        autocast: bool = False,
    ) -> None:
        super().__init__(tokenizer, model.config.image_size, model.config.word_length)
        self._model = model
        self._device = torch.device(device)
        if autocast and self._device.type != "cuda":
            raise ValueError(f"autocast needs a CUDA device, not {self._device}; leave it off")
        self._batch_size = _positive(batch_size)
        self._autocast = autocast

    @torch.inference_mode()
    def _logits(self, square: NDArray[np.uint8], tokens: NDArray[np.int64]) -> Tensor:
        self._model.eval()
        words = torch.from_numpy(tokens).to(self._device)
        pixels = torch.from_numpy(square)[None].to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            pyramid = self._model.encode_image(pixels)
            text = self._model.encode_text(words)
            return torch.cat(
                [
                    self._decode(pyramid, [part[chosen] for part in text])
                    for chosen in _batches(len(tokens), self._batch_size)
                ]
            )

    def _decode(self, pyramid: Sequence[Tensor], text: Sequence[Tensor]) -> Tensor:
        count = len(text[0])
        levels = (level.expand(count, *level.shape[1:]) for level in pyramid)
        logits: Tensor = self._model.decode(*levels, *text)
        return logits


class GraphsPredictor(_NetworkPredictor):
    """Runs three graphs that take and give arrays. `batch_size`: phrases decoded together."""

    def __init__(
        self,
        graphs: Graphs,
        tokenizer: Tokenizer,
        image_size: int,
        word_length: int,
        batch_size: int = 8,
    ) -> None:
        super().__init__(tokenizer, image_size, word_length)
        self._graphs = graphs
        self._batch_size = _positive(batch_size)

    def _logits(self, square: NDArray[np.uint8], tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        pyramid = self._graphs.encode_image(square[None])
        text = self._graphs.encode_text(tokens)
        logits = []
        for chosen in _batches(len(tokens), self._batch_size):
            parts = [part[chosen] for part in text]
            levels = [np.repeat(level, len(parts[0]), axis=0) for level in pyramid]
            logits.append(self._graphs.decode(levels, parts))
        return np.concatenate(logits)


def _array(logits: Logits) -> NDArray[np.float32]:
    return logits.float().cpu().numpy() if isinstance(logits, Tensor) else logits


class BundlePredictor(GraphsPredictor):
    """Runs a bundle's three ONNX graphs on the CPU, as the service's default backend does.

    `threads`: of ONNX Runtime, 0 = its own choice. `precision`: "fp32", or one of the variants that
    the bundle has; BundleError for others. Without one it is the service's choice.
    """

    def __init__(
        self, bundle: Bundle, threads: int = 0, batch_size: int = 8, precision: str | None = None
    ) -> None:
        from training.onnx_graphs import OnnxGraphs

        graphs = OnnxGraphs(bundle.graphs(precision or bundle.cpu_precision), threads)
        config = bundle.config
        super().__init__(
            graphs, bundle.tokenizer(), config.image_size, config.word_length, batch_size
        )


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def _positive(batch_size: int) -> int:
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    return batch_size
