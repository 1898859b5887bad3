"""The ONNX graphs in float16, for GPUs. What passes between them is float16 too, logits are not."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from model.bundle import STAGES


def export_half_precision(directory: Path) -> None:
    """Write `{stage}.fp16.onnx` beside each `{stage}.onnx` of `directory`.

    A deformable convolution and what makes its offsets stay in float32: in float16 it would sample
    up to a sixteenth of a pixel beside its place.
    """
    for stage in STAGES:
        model = onnx.shape_inference.infer_shapes(onnx.load(directory / f"{stage}.onnx"))
        positional = positional_nodes(model.graph)
        _leave_undescribed(model.graph, positional)
        half = convert_float_to_float16(
            model,
            keep_io_types=["logits"],
            disable_shape_infer=True,
            node_block_list=[node.name for node in positional],
        )
        OnnxModel.graph_topological_sort(half.graph)  # the converter appends what it adds
        onnx.checker.check_model(half, full_check=True)
        onnx.save(half, directory / f"{stage}.fp16.onnx")


def positional_nodes(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """What says where to sample: each `DeformConv`, and all nodes back to its offsets' `Conv`."""
    maker = {name: node for node in graph.node for name in node.output}
    found: dict[str, onnx.NodeProto] = {}
    for node in graph.node:
        if node.op_type != "DeformConv":
            continue
        found[node.name] = node
        before = [maker[node.input[2]]]
        while before:
            node = before.pop()
            found[node.name] = node
            if node.op_type != "Conv":
                before += [maker[name] for name in node.input if name in maker]
    return list(found.values())


def _leave_undescribed(graph: onnx.GraphProto, together: list[onnx.NodeProto]) -> None:
    """Drop what the graph says of weights, and of values that pass between nodes of `together`.

    The converter puts a cast to float16 and back around each value with a description that a node
    in float32 reads or gives; there, that would round what must not be.
    """
    read = {name for node in together for name in node.input}
    inner = {name for node in together for name in node.output} & read
    inner |= {tensor.name for tensor in graph.initializer}
    described = [value for value in graph.value_info if value.name not in inner]
    del graph.value_info[:]
    graph.value_info.extend(described)
