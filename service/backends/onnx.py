"""A bundle's three graphs in ONNX Runtime on the CPU; other devices are `onnx_gpu`'s. No torch."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
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
from service.backends.load_options import (
    DeviceChoice,
    batch_sizes,
    device_choice,
    supported_precision,
)
from service.backends.loaded_model import complete
from service.backends.onnx_graphs import Graph, open_graphs, session_options

LARGEST_BATCH = 8
"""Unless the options say otherwise. A CPU is no faster with more: only images are shared."""

_log = logging.getLogger(__name__)


class OnnxBackend:
    """`service.backends.base.Backend` over three inference sessions."""

    name = "onnx-cpu"
    asynchronous = False

    def __init__(self, bundle: Bundle, options: LoadOptions) -> None:
        """Raises BundleError for a graph that cannot be run, ValueError for other options."""
        self.precision: Precision = supported_precision(
            self.name, options.precision, ("fp32", "int8"), "fp32"
        )
        self.batch_sizes = batch_sizes(options, LARGEST_BATCH, padded=False)
        session = cpu_sessions(options.threads)
        self._image, self._text, self._mask = open_graphs(bundle, self.precision, session)

    def encode_image(self, images: NDArray[np.uint8]) -> Sequence[ArrayFeatures]:
        return split_rows(_run(self._image, [images]))

    def encode_text(self, tokens: NDArray[np.int64]) -> Sequence[ArrayFeatures]:
        return split_rows(_run(self._text, [tokens]))

    def decode(
        self, images: Sequence[ArrayFeatures], texts: Sequence[ArrayFeatures]
    ) -> PendingLogits:
        (logits,) = _run(self._mask, [*join_rows(images), *join_rows(texts)])
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
