"""The ONNX graphs in int8 for CPUs: weights and what they multiply, by static quantisation.

M = photos, N = phrases of a photo, S = input side, L = word length.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

from model.bundle import GRAPH_FILES
from model.config import SegVLMConfig
from model.preprocess import letterbox_image
from model.tokenizer import Tokenizer
from training.data.lmdb_store import PhraseStore
from training.onnx_graphs import PYRAMID, TEXT, Array, OnnxGraphs

from .errors import ExportError
from .half_precision import positional_nodes

STAGES = ("image_encoder", "mask_decoder")
"""The text encoder is left in float32: it takes a twentieth of the time and gains nothing."""

PHOTOS, PHRASES = 64, 2
"""Photos whose activations set the ranges, and phrases of each."""

CalibrationRequests = list[tuple[NDArray[np.uint8], NDArray[np.int64]]]
"""A letterboxed photo uint8 (S, S, 3) and phrases about it int64 (N, L), for each of M photos."""

_WEIGHTED = ("Conv", "Gemm", "MatMul")


def calibration_requests(
    store: PhraseStore, tokenizer: Tokenizer, config: SegVLMConfig, photos: int = PHOTOS
) -> CalibrationRequests:
    """At most `photos` training photos of a store, evenly spread over it.

    Raises:
        ExportError: if none has a phrase.
    """
    ids = [image_id for image_id in store.image_ids("train") if store.phrase_count(image_id)]
    if not ids:
        raise ExportError(
            f"{store.path} has no training photos to measure activations on; add some"
        )
    requests = []
    for image_id in ids[:: max(1, len(ids) // photos)][:photos]:
        square, _ = letterbox_image(store.photo(image_id), config.image_size)
        phrases = [phrase.phrase for phrase in store.phrases(image_id)[:PHRASES]]
        requests.append((square, tokenizer.encode(phrases, config.word_length).tokens))
    return requests


def export_int8(directory: Path, requests: CalibrationRequests) -> None:
    """Write `{stage}.int8.onnx` for each of `STAGES` beside the float32 graphs of `directory`.

    Weights have 7 bits and a scale for each output channel. The eighth would let the 16-bit sums of
    processors without VNNI overflow, and a bundle should answer alike everywhere. An activation's
    range is the mean of its ranges on the photos, not the widest: that of one photo would cost all
    others resolution.
    """
    inputs = _calibration_inputs(directory, requests)
    for stage in STAGES:
        with TemporaryDirectory(prefix="segvlm-int8-") as folder, _quiet_quantiser():
            prepared = Path(folder) / "prepared.onnx"
            source = str(directory / f"{stage}.onnx")
            # Its own inference of shapes stumbles over DeformConv; ONNX's does not.
            quant_pre_process(source, str(prepared), skip_symbolic_shape=True)
            quantize_static(
                str(prepared),
                str(directory / f"{stage}.int8.onnx"),
                _Reader(inputs[stage]),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(_WEIGHTED),
                nodes_to_exclude=float_nodes(onnx.load(prepared).graph),
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.MinMax,
                extra_options={"CalibMovingAverage": True},
            )


def float_nodes(graph: onnx.GraphProto) -> list[str]:
    """Names of the weighted nodes of a stage that must stay in float32.

    Those of the image encoder on maps finer than p3, products of two activations (attention, the
    dynamic convolution), what says where a deformable convolution samples, and what reads the same.
    """
    constants = {tensor.name for tensor in graph.initializer}
    sides = {
        value.name: value.type.tensor_type.shape.dim[-1].dim_value
        for value in (*graph.value_info, *graph.output)
        if value.type.tensor_type.shape.dim
    }
    largest = sides["p3"] if "p3" in {value.name for value in graph.output} else max(sides.values())
    positional = positional_nodes(graph)
    # The quantiser rounds a value for all that read it, or for none.
    exact = {name for node in positional for name in node.input} - constants
    names = [node.name for node in positional]
    for node in graph.node:
        if node.op_type in _WEIGHTED and (
            constants.isdisjoint(node.input)
            or not exact.isdisjoint(node.input)
            or (node.op_type == "Conv" and sides[node.output[0]] > largest)
        ):
            names.append(node.name)
    return names


def _calibration_inputs(
    directory: Path, requests: CalibrationRequests
) -> dict[str, list[dict[str, Array]]]:
    """What each of `STAGES` reads for the requests; a photo is read once for each phrase."""
    graphs = OnnxGraphs([directory / name for name in GRAPH_FILES])
    inputs: dict[str, list[dict[str, Array]]] = {stage: [] for stage in STAGES}
    for square, tokens in requests:
        image = {"image": square[None]}
        levels = [
            level.repeat(len(tokens), axis=0) for level in graphs.encode_image(image["image"])
        ]
        parts = graphs.encode_text(tokens)
        inputs["image_encoder"].append(image)
        inputs["mask_decoder"].append(dict(zip((*PYRAMID, *TEXT), (*levels, *parts), strict=True)))
    return inputs


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Hands out the inputs one by one, as the quantiser asks for them."""

    def __init__(self, inputs: Iterable[dict[str, Array]]) -> None:
        self._inputs = iter(inputs)

    def get_next(self) -> dict[str, Any] | None:
        return next(self._inputs, None)


@contextmanager
def _quiet_quantiser() -> Iterator[None]:
    """It advises, at the root logger, to do what has just been done."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
