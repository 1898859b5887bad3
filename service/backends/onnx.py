"""A bundle's three graphs in ONNX Runtime on the CPU; other devices are `onnx_gpu`'s. No torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from model.bundle import Bundle
from service.backends.arrays import ArrayFeatures, join_rows, split_rows
from service.backends.base import LoadedModel, LoadOptions, PendingLogits, Precision
from service.backends.device_errors import guarded
from service.backends.lanes import Lanes, usable_cores
from service.backends.load_options import (
    DeviceChoice,
    batch_sizes,
    device_choice,
    supported_precision,
)
from service.backends.loaded_model import complete
from service.backends.onnx_graphs import Graph, open_graphs, session_options

LARGEST_BATCH = 8
"""Unless the options say otherwise, or there are more cores. More rows are no faster on a CPU."""

_log = logging.getLogger(__name__)


class OnnxBackend:
    """`service.backends.base.Backend` over inference sessions, for rows alone and together."""

    name = "onnx-cpu"
    asynchronous = False

    def __init__(self, bundle: Bundle, options: LoadOptions) -> None:
        """Raises BundleError for a graph that cannot be run, ValueError for other options."""
        self.precision: Precision = supported_precision(
            self.name, options.precision, ("fp32", "int8"), bundle.cpu_precision
        )
        cores = options.threads or usable_cores()
        self.batch_sizes = batch_sizes(options, max(LARGEST_BATCH, cores), padded=False)
        self._lanes = Lanes(cores)

        self._image, self._text, self._mask = self._lanes.call(
            lambda: open_graphs(bundle, self.precision, cpu_sessions(cores))
        )
        self._image_alone, self._mask_alone = self._image, self._mask
        if cores > 1:
            image, _, mask = bundle.graphs(self.precision)
            self._image_alone = self._image._replace(session=cpu_sessions(1)(image, ()))
            self._mask_alone = self._mask._replace(session=cpu_sessions(1)(mask, ()))

    def encode_image(self, images: NDArray[np.uint8]) -> Sequence[ArrayFeatures]:
        def encoded(graph: Graph, rows: slice) -> list[ArrayFeatures]:
            return split_rows(_run(graph, [images[rows]]))

        parts = self._lanes.run(
            len(images), partial(encoded, self._image_alone), partial(encoded, self._image)
        )
        return [features for part in parts for features in part]

    def encode_text(self, tokens: NDArray[np.int64]) -> Sequence[ArrayFeatures]:
        texts = self._lanes.call(lambda: _run(self._text, [tokens]))  # too small for more
        return split_rows(texts)

    def decode(
        self, images: Sequence[ArrayFeatures], texts: Sequence[ArrayFeatures]
    ) -> PendingLogits:
        def decoded(graph: Graph, rows: slice) -> NDArray[np.float32]:
            (logits,) = _run(graph, [*join_rows(images[rows]), *join_rows(texts[rows])])
            return logits

        parts = self._lanes.run(
            len(images), partial(decoded, self._mask_alone), partial(decoded, self._mask)
        )
        logits = parts[0] if len(parts) == 1 else np.concatenate(parts)
        return lambda: logits

    def release_memory(self) -> None:
        pass

    def memory_bytes(self) -> Mapping[str, int]:
        return {}


def load_onnx(path: Path, options: LoadOptions) -> LoadedModel:
    """Load and verify the bundle at `path`, for the CPU or whatever `options.device` names.

    Raises BundleError that says what is wrong with the bundle, ValueError with the options.
    """
    choice = device_choice("onnx", options.device, ("cpu", "cuda", "tensorrt"))
    if choice.kind == "cpu" or (choice.kind == "auto" and not _cuda_usable()):
        bundle = Bundle.load(path)
        return complete(bundle, OnnxBackend(bundle, options))
    from service.backends.onnx_gpu import load_onnx_gpu  # the CPU service has no torch

    return load_onnx_gpu(path, options, DeviceChoice("cuda") if choice.kind == "auto" else choice)


def cpu_sessions(threads: int) -> Any:
    """Opens sessions on the CPU, for `open_graphs`; `threads` as in `LoadOptions`."""

    def open_session(path: Path, _: object) -> Any:
        return ort.InferenceSession(
            str(path), session_options(threads), providers=["CPUExecutionProvider"]
        )

    return open_session


def _run(graph: Graph, inputs: Sequence[NDArray[Any]]) -> Sequence[NDArray[Any]]:
    """`inputs` and the answer in the order of the graph's stage."""
    names = [value.name for value in graph.outputs]
    fed = {value.name: array for value, array in zip(graph.inputs, inputs, strict=True)}
    outputs: Sequence[NDArray[Any]] = guarded(lambda: graph.session.run(names, fed))
    return outputs


def _cuda_usable() -> bool:
    """Whether this ONNX Runtime, torch and the machine can all do CUDA."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return False
    if find_spec("torch") is None:
        _log.warning("onnxruntime-gpu runs on the CPU: torch, which holds the features, is missing")
        return False
    from service.backends.torch_device import cuda_devices

    return cuda_devices() > 0
