"""A bundle's three graphs in ONNX Runtime on the CPU. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from model.bundle import Bundle, BundleError
from service.backends.base import Floats, LoadedModel, ModelSpec

PYRAMID = ("p3", "p4", "p5")
TEXT = ("words", "state", "pad_mask")
_GRAPHS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "image_encoder.onnx": (("image",), PYRAMID),
    "text_encoder.onnx": (("tokens",), TEXT),
    "mask_decoder.onnx": ((*PYRAMID, *TEXT), ("logits",)),
}


class OnnxBackend:
    """`service.backends.base.Backend` over three inference sessions."""

    name = "onnx-cpu"

    def __init__(self, bundle: Bundle, threads: int) -> None:
        """`threads` for one operator, 0 = one for each core.

        Raises BundleError if a graph cannot be loaded or is not what its name says.
        """
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1  # the graphs are chains; a second pool only competes
        options.log_severity_level = 3
        # Idle workers that spin take the cores from the threads that decode and encode images.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._image, self._text, self._mask = (
            _session(bundle, file, inputs, outputs, options)
            for file, (inputs, outputs) in _GRAPHS.items()
        )

    def encode_image(self, images: NDArray[np.uint8]) -> tuple[Floats, Floats, Floats]:
        p3, p4, p5 = self._image.run(PYRAMID, {"image": images})
        return p3, p4, p5

    def encode_text(self, tokens: NDArray[np.int64]) -> tuple[Floats, Floats, NDArray[np.bool_]]:
        words, state, pad_mask = self._text.run(TEXT, {"tokens": tokens})
        return words, state, pad_mask

    def decode(
        self,
        p3: Floats,
        p4: Floats,
        p5: Floats,
        words: Floats,
        state: Floats,
        pad_mask: NDArray[np.bool_],
    ) -> NDArray[np.float32]:
        inputs = {
            "p3": p3,
            "p4": p4,
            "p5": p5,
            "words": words,
            "state": state,
            "pad_mask": pad_mask,
        }
        logits: NDArray[np.float32] = self._mask.run(("logits",), inputs)[0]
        return logits


def load_onnx(path: Path, threads: int) -> LoadedModel:
    """Load and verify the bundle at `path`. Raises BundleError that says what is wrong with it."""
    bundle = Bundle.load(path)
    config = bundle.config
    spec = ModelSpec(
        name=config.name,
        version=config.version,
        image_size=config.image_size,
        word_length=config.word_length,
        threshold=config.threshold,
    )
    return LoadedModel(spec, OnnxBackend(bundle, threads), bundle.tokenizer())


def _session(
    bundle: Bundle,
    file: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    options: ort.SessionOptions,
) -> Any:
    path = bundle.file(file)
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        raise BundleError(
            f"ONNX Runtime {ort.__version__} cannot load {path}: {error}; export the bundle again, "
            "or install the onnxruntime that constraints.txt names"
        ) from error
    found = ({node.name for node in session.get_inputs()}, [n.name for n in session.get_outputs()])
    if found != (set(inputs), list(outputs)):
        raise BundleError(
            f"{path} maps {sorted(found[0])} to {found[1]}, expected {sorted(inputs)} to "
            f"{list(outputs)}; export the bundle with this version of the project"
        )
    return session
