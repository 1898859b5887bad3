"""What every server in the comparison has: our decoding, our ONNX backend, our mask encoding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.bundle import DEFAULT_BUNDLE
from model.preprocess import Letterbox, letterbox_geometry, letterbox_picture
from service import answers
from service.answers import Finding
from service.backends import load_model
from service.backends.base import LoadOptions
from service.image_input import decode_photo
from service.schemas import SegmentOptions

MAX_BATCH_SIZE = 8
_MAX_PIXELS = 50_000_000
_OPTIONS = SegmentOptions.model_validate({})


@dataclass(frozen=True)
class Question:
    """A photo and an expression, ready for the model."""

    square: NDArray[np.uint8]
    tokens: NDArray[np.int64]
    geometry: Letterbox
    expression: str

    @property
    def pair(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        return self.square, self.tokens


class Segmenter:
    """The bundled model; one instance for each process that needs it."""

    def __init__(self) -> None:
        self._model = load_model("onnx", DEFAULT_BUNDLE, LoadOptions())
        self._spec = self._model.spec
        for batch in (1, MAX_BATCH_SIZE):
            side, length = self._spec.image_size, self._spec.word_length
            tokens = np.ones((batch, length), dtype=np.int64)
            self._logits(np.zeros((batch, side, side, 3), dtype=np.uint8), tokens)

    def prepare(self, jpeg: bytes, expression: str) -> Question:
        """Decode, letterbox, tokenise."""
        side = self._spec.image_size
        photo = decode_photo(jpeg, _MAX_PIXELS, least=side)
        geometry = letterbox_geometry(photo.height, photo.width, side)
        tokens = self._model.tokenizer.encode([expression], self._spec.word_length).tokens[0]
        return Question(letterbox_picture(photo.picture, geometry), tokens, geometry, expression)

    def run(
        self, pairs: Sequence[tuple[NDArray[np.uint8], NDArray[np.int64]]]
    ) -> list[NDArray[np.float32]]:
        """A batch of squares and tokens through the model."""
        squares, tokens = zip(*pairs, strict=True)
        return list(self._logits(np.stack(squares), np.stack(tokens)))

    def finish(self, question: Question, logits: NDArray[np.float32]) -> dict[str, Any]:
        """The mask as COCO RLE, with score, area and box."""
        finding = Finding(question.expression, False, logits)
        found = answers.restore(
            finding, question.geometry, self._spec.threshold, self._spec.score_map
        )
        return dict(json.loads(answers.describe(found, _OPTIONS).model_dump_json()))

    def _logits(self, images: NDArray[np.uint8], tokens: NDArray[np.int64]) -> NDArray[np.float32]:
        backend = self._model.backend
        return backend.decode(backend.encode_image(images), backend.encode_text(tokens))()
