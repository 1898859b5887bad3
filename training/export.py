"""From a trained network to a bundle: three ONNX graphs, each checked against the network."""

from __future__ import annotations

import copy
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model.bundle import BundleConfig, write_bundle
from model.config import SegVLMConfig
from model.segvlm import SegVLM
from model.tokenizer import Tokenizer

from .parity import PYRAMID, TEXT, Graphs, compare, complaints, random_requests, split_requests

OPSET = 20
"""DeformConv is standard from 19; TensorRT 10 reads up to 20 and more."""

RealInputs = tuple[NDArray[np.uint8], NDArray[np.int64]]


class ExportError(ValueError):
    """The graphs are not what was promised; nothing was written."""


class _Stage(NamedTuple):
    file: str
    method: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


_STAGES = (
    _Stage("image_encoder.onnx", "encode_image", ("image",), PYRAMID),
    _Stage("text_encoder.onnx", "encode_text", ("tokens",), TEXT),
    _Stage("mask_decoder.onnx", "decode", (*PYRAMID, *TEXT), ("logits",)),
)


def export_bundle(
    model: SegVLM,
    tokenizer: Tokenizer,
    out: Path,
    *,
    name: str,
    version: str,
    threshold: float,
    training: dict[str, Any],
    scores: dict[str, Any],
    real_inputs: RealInputs | None = None,
    overwrite: bool = False,
) -> BundleConfig:
    """Export `model` as the bundle `out`, and prove it equal to the network.

    Every graph runs on random and `real_inputs`, in batches of 1, 3 and more; each output must be
    within 1e-3 of its largest value, the masks' IoU at least 0.999. `parity` keeps the differences.

    Args:
        model: any preset; left as it is (an evaluation-mode copy on the CPU is exported).
        tokenizer: what the model was trained with.
        out: the directory to create; an existing bundle only gives way with `overwrite`.
        name, version: of the model, for whoever is served by it.
        threshold: probability above which a pixel belongs to the mask.
        training, scores: JSON values: how the model was made, what evaluation measured.
        real_inputs: letterboxed images (N, S, S, 3) uint8 and their expressions (N, L) int64.

    Returns:
        What `config.json` holds.

    Raises:
        ExportError: if a graph holds operators that are not standard ONNX, or differs.
        model.bundle.BundleError: if the bundle cannot be written.
    """
    if out.exists() and not overwrite:
        raise ExportError(f"{out} exists; choose another directory, or allow overwriting")
    model = copy.deepcopy(model).cpu().float().eval()
    config = model.config
    if real_inputs is not None:
        _check_real_inputs(config, *real_inputs)
    with tempfile.TemporaryDirectory(prefix="segvlm-export-") as folder:
        directory = Path(folder)
        export_graphs(model, directory)
        parity = _prove(model, directory, threshold, real_inputs)
        tokenizer.save(directory / "tokenizer.json")
        description = BundleConfig(
            name=name,
            version=version,
            preset=config.preset,
            image_size=config.image_size,
            word_length=config.word_length,
            threshold=threshold,
            mean=config.mean,
            std=config.std,
            training=training,
            scores=scores,
            parity=parity,
        )
        files = {path.name: path for path in directory.iterdir()}
        return write_bundle(out, description, files, overwrite).config


def _check_real_inputs(
    config: SegVLMConfig, images: NDArray[np.uint8], tokens: NDArray[np.int64]
) -> None:
    count, size = len(images), config.image_size
    expected = ((count, size, size, 3), (count, config.word_length))
    if count == 0 or (images.shape, tokens.shape) != expected:
        raise ExportError(
            f"real_inputs must be images {expected[0]} and tokens {expected[1]}, at least one of "
            f"each, not {images.shape} and {tokens.shape}"
        )


def export_graphs(model: SegVLM, directory: Path) -> None:
    """Write image_encoder.onnx, text_encoder.onnx and mask_decoder.onnx into `directory`.

    Args:
        model: in evaluation mode, on the CPU.

    Raises:
        ExportError: if a graph holds an operator outside the ONNX standard.
    """
    config = model.config
    # Two of everything: a batch of one would be taken for a constant.
    values: dict[str, Tensor] = {
        "image": torch.zeros(2, config.image_size, config.image_size, 3, dtype=torch.uint8),
        "tokens": torch.ones(2, config.word_length, dtype=torch.int64),
    }
    for stage in _STAGES:
        module = _StageModule(model, stage.method).eval()
        arguments = tuple(values[name] for name in stage.inputs)
        with torch.inference_mode():
            outputs = module(*arguments)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        values |= {n: v.clone() for n, v in zip(stage.outputs, outputs, strict=True)}
        path = directory / stage.file
        _write_graph(module, arguments, stage, path)
        foreign = non_standard_operators(path)
        if foreign:
            raise ExportError(
                f"{stage.file} holds operators outside the ONNX standard: {', '.join(foreign)}; "
                "the pinned torch (constraints.txt) exports none"
            )


def non_standard_operators(path: Path) -> list[str]:
    """`domain::operator` of every node in the ONNX file that plain ONNX does not define."""
    graph = onnx.load(path, load_external_data=False)
    nodes = [*graph.graph.node, *(node for function in graph.functions for node in function.node)]
    domains = ("", "ai.onnx")
    return sorted(
        {f"{node.domain}::{node.op_type}" for node in nodes if node.domain not in domains}
    )


class _StageModule(nn.Module):
    """One of SegVLM's three stages as a module of its own, which is what exporters take."""

    def __init__(self, model: SegVLM, method: str) -> None:
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, *inputs: Tensor) -> Any:
        return getattr(self.model, self.method)(*inputs)


def _write_graph(
    module: nn.Module, arguments: tuple[Tensor, ...], stage: _Stage, path: Path
) -> None:
    batch = torch.export.Dim("batch")
    with _quiet_exporter():
        program = torch.onnx.export(
            module,
            arguments,
            input_names=stage.inputs,
            output_names=stage.outputs,
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=(tuple({0: batch} for _ in arguments),),
            external_data=False,
            verbose=False,
        )
    assert program is not None  # dynamo=True without a file returns the program
    program.save(path, external_data=False)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """The exporter narrates constants that it cannot fold and axes that share a name."""
    logger = logging.getLogger("onnxscript")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message=".*axis name.*will not be used", category=UserWarning
            )
            yield
    finally:
        logger.setLevel(level)


def _prove(
    model: SegVLM, directory: Path, threshold: float, real_inputs: RealInputs | None
) -> dict[str, Any]:
    """`parity` of config.json, or ExportError."""
    graphs = Graphs(directory)
    config = model.config
    trials = {"random": random_requests(config.image_size, config.word_length)}
    if real_inputs is not None:
        trials["real"] = split_requests(*real_inputs)
    parity: dict[str, Any] = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    for kind, requests in trials.items():
        try:
            measured = compare(model, graphs, requests, threshold)
        except ValueError as error:
            raise ExportError(f"on {kind} input, {error}") from error
        told = complaints(measured)
        if told:
            raise ExportError(
                f"the exported graphs differ from the network on {kind} input: {'; '.join(told)}; "
                "nothing was written. The pins of constraints.txt are known to agree"
            )
        parity[kind] = measured
    return parity
