"""The three stages as ONNX graphs in float32, which every bundle has."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from model.folding import fold_batch_norms
from model.segvlm import SegVLM

from .attention_graph import attention
from .errors import ExportError
from .half_tables import halve_tables
from .stages import Stage, StageModule, stages_with_inputs

OPSET = 20
"""DeformConv is standard from 19; TensorRT 10 reads up to 20 and more."""

_TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: attention
}


def export_graphs(model: SegVLM, directory: Path) -> None:
    """Write image_encoder.onnx, text_encoder.onnx and mask_decoder.onnx into `directory`.

    Args:
        model: in evaluation mode, on the CPU.

    Raises:
        ExportError: if a graph holds an operator outside the ONNX standard.
    """
    for stage, module, inputs in stages_with_inputs(fold_batch_norms(model)):
        path = directory / f"{stage.name}.onnx"
        _write_graph(module, inputs, stage, path)
        halve_tables(path)
        foreign = non_standard_operators(path)
        if foreign:
            raise ExportError(
                f"{path.name} holds operators outside the ONNX standard: {', '.join(foreign)}; "
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


def _write_graph(module: StageModule, inputs: tuple[Tensor, ...], stage: Stage, path: Path) -> None:
    batch = torch.export.Dim("batch")
    with _quiet_exporter():
        program = torch.onnx.export(
            module,
            inputs,
            input_names=stage.inputs,
            output_names=stage.outputs,
            opset_version=OPSET,
            dynamo=True,
            dynamic_shapes=(tuple({0: batch} for _ in inputs),),
            custom_translation_table=_TRANSLATIONS,
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
