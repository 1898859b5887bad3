"""A bundle's three ONNX graphs in ONNX Runtime on the CPU, for evaluation and the export's checks.

M = images, N = expressions, P = pairs of the two, S = input side, L = word length.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime
from numpy.typing import NDArray

Array = NDArray[Any]

PYRAMID = ("p3", "p4", "p5")
TEXT = ("words", "state", "pad_mask")


class OnnxGraphs:
    """The image encoder, text encoder and mask decoder in three files, of any precision.

    `threads`: of each operator, 0 = ONNX Runtime's own choice. What passes between the graphs is
    in their own type; float16 graphs run here too, though a CPU computes them in float32.
    """

    def __init__(self, files: Sequence[Path], threads: int = 0) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Idle threads that spin take the cores from whatever else runs on the machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._image, self._text, self._decoder = (
            onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
            for file in files
        )

    def encode_image(self, images: Array) -> list[Array]:
        """images (M, S, S, 3) uint8 -> the three levels of `PYRAMID`."""
        return list(self._image.run(PYRAMID, {"image": images}))

    def encode_text(self, tokens: Array) -> list[Array]:
        """tokens (N, L) int64 -> the three parts of `TEXT`."""
        return list(self._text.run(TEXT, {"tokens": tokens}))

    def decode(self, pyramid: Sequence[Array], text: Sequence[Array]) -> Array:
        """Levels and parts, P rows each -> logits (P, S/4, S/4) float32."""
        inputs = dict(zip((*PYRAMID, *TEXT), (*pyramid, *text), strict=True))
        logits: Array = self._decoder.run(["logits"], inputs)[0]
        return logits
