"""Probability maps at a photo's own size, from a network in torch or from an exported bundle.

Both predictors encode the photo once for all of its phrases, and use the letterbox and its inverse
of `model.preprocess`, as the service does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.preprocess import Letterbox, letterbox_image, restore_probability, sigmoid
from model.segvlm import SegVLM
from model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from model.bundle import Bundle

Probabilities = list[NDArray[np.float32]]


class Predictor(Protocol):
    """Anything that turns a photo and phrases into masks."""

    def predict(self, image: NDArray[np.uint8], phrases: Sequence[str]) -> Probabilities:
        """Segment one photo.

        `image`: uint8 RGB (H, W, 3). Returns for each phrase, in order, a float32 map (H, W) of
        probabilities at the photo's original size.
        """
        ...


class TorchPredictor:
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
        self._model = model
        self._tokenizer = tokenizer
        self._device = torch.device(device)
        if autocast and self._device.type != "cuda":
            raise ValueError(f"autocast needs a CUDA device, not {self._device}; leave it off")
        self._batch_size = _positive(batch_size)
        self._autocast = autocast

    @torch.inference_mode()
    def predict(self, image: NDArray[np.uint8], phrases: Sequence[str]) -> Probabilities:
        """See `Predictor`."""
        if not phrases:
            return []
        self._model.eval()
        config = self._model.config
        square, geometry = letterbox_image(image, config.image_size)
        tokens = torch.from_numpy(self._tokenizer.encode(phrases, config.word_length).tokens)
        pixels = torch.from_numpy(square)[None].to(self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            pyramid = self._model.encode_image(pixels)
            text = self._model.encode_text(tokens.to(self._device))
            logits = torch.cat(
                [
                    self._decode(pyramid, [part[chosen] for part in text])
                    for chosen in _batches(len(phrases), self._batch_size)
                ]
            )
        return _restore(logits.float().cpu().numpy(), geometry)

    def _decode(self, pyramid: Sequence[Tensor], text: Sequence[Tensor]) -> Tensor:
        count = len(text[0])
        levels = (level.expand(count, *level.shape[1:]) for level in pyramid)
        logits: Tensor = self._model.decode(*levels, *text)
        return logits


class BundlePredictor:
    """Runs a bundle's three ONNX graphs on the CPU, as the service's default backend does.

    `threads`: of ONNX Runtime, 0 = its own choice. `batch_size`: phrases decoded together.
    """

    def __init__(self, bundle: Bundle, threads: int = 0, batch_size: int = 8) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self._image_encoder, self._text_encoder, self._mask_decoder = (
            onnxruntime.InferenceSession(
                str(bundle.file(f"{name}.onnx")), options, providers=["CPUExecutionProvider"]
            )
            for name in ("image_encoder", "text_encoder", "mask_decoder")
        )
        self._tokenizer = bundle.tokenizer()
        self._image_size = bundle.config.image_size
        self._word_length = bundle.config.word_length
        self._batch_size = _positive(batch_size)

    def predict(self, image: NDArray[np.uint8], phrases: Sequence[str]) -> Probabilities:
        """See `Predictor`."""
        if not phrases:
            return []
        square, geometry = letterbox_image(image, self._image_size)
        tokens = self._tokenizer.encode(phrases, self._word_length).tokens
        levels, parts = ("p3", "p4", "p5"), ("words", "state", "pad_mask")
        pyramid = self._image_encoder.run(levels, {"image": square[None]})
        text = self._text_encoder.run(parts, {"tokens": tokens})
        logits = []
        for chosen in _batches(len(phrases), self._batch_size):
            inputs = {name: part[chosen] for name, part in zip(parts, text, strict=True)}
            count = len(inputs["words"])
            for name, level in zip(levels, pyramid, strict=True):
                inputs[name] = np.repeat(level, count, axis=0)
            logits.append(self._mask_decoder.run(["logits"], inputs)[0])
        return _restore(np.concatenate(logits), geometry)


def _restore(logits: NDArray[np.float32], geometry: Letterbox) -> Probabilities:
    return [restore_probability(each, geometry) for each in sigmoid(logits)]


def _batches(count: int, size: int) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))


def _positive(batch_size: int) -> int:
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, not {batch_size}")
    return batch_size
