"""The ONNX graphs of a bundle are plain ONNX, in either precision."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import onnxruntime
import pytest

from model.bundle import Bundle
from tests.training.exporting.small_exports import GRAPHS
from training.exporting.half_precision import export_half_precision, positional_nodes
from training.exporting.onnx_files import non_standard_operators


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_are_standard_onnx_with_a_free_batch(bundle: Bundle, name: str) -> None:
    path = bundle.file(f"{name}.onnx")
    onnx.checker.check_model(str(path), full_check=True)
    assert non_standard_operators(path) == []
    graph = onnx.load(path)
    assert [(opset.domain, opset.version >= 19) for opset in graph.opset_import] == [("", True)]
    for value in (*graph.graph.input, *graph.graph.output):
        batch, *rest = value.type.tensor_type.shape.dim
        assert batch.dim_param == "batch"
        assert all(size.dim_value > 0 for size in rest)
    deformable = [node for node in graph.graph.node if node.op_type == "DeformConv"]
    assert [node.domain for node in deformable] == ([""] if name == "mask_decoder" else [])
    # Inference graphs: every normalisation after a convolution is inside the convolution.
    if name == "image_encoder":
        assert "BatchNormalization" not in {node.op_type for node in graph.graph.node}


def test_names_and_types_of_inputs_and_outputs(bundle: Bundle) -> None:
    found = {}
    for name in GRAPHS:
        session = onnxruntime.InferenceSession(bundle.file(f"{name}.onnx"))
        ends = (session.get_inputs(), session.get_outputs())
        found[name] = [[(value.name, value.type) for value in end] for end in ends]
    pyramid = [(name, "tensor(float)") for name in ("p3", "p4", "p5")]
    text = [("words", "tensor(float)"), ("state", "tensor(float)"), ("pad_mask", "tensor(bool)")]
    assert found == {
        "image_encoder": [[("image", "tensor(uint8)")], pyramid],
        "text_encoder": [[("tokens", "tensor(int64)")], text],
        "mask_decoder": [[*pyramid, *text], [("logits", "tensor(float)")]],
    }


def test_where_to_sample_stays_in_float32_in_float16_graphs(bundle: Bundle, tmp_path: Path) -> None:
    """Nothing is rounded from the convolution that makes the offsets to the one that uses them."""
    for path in bundle.graphs():
        shutil.copy(path, tmp_path)
    export_half_precision(tmp_path)
    graph = onnx.load(tmp_path / "mask_decoder.fp16.onnx").graph
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    nodes = positional_nodes(graph)
    assert {node.op_type for node in nodes} - {"Cast"} == {"DeformConv", "Where", "IsNaN", "Conv"}
    for node in nodes:
        constants = [types[name] for name in node.input if name in types]
        if node.op_type == "Cast":
            assert constants  # the zero of Where, which others read as float16
        elif node.op_type in ("DeformConv", "Conv"):
            assert constants == [onnx.TensorProto.FLOAT] * 2


@pytest.mark.parametrize("name", ["text_encoder", "mask_decoder"])
def test_nothing_is_mended_after_the_softmax_of_an_attention(bundle: Bundle, name: str) -> None:
    """torch's own translation asks there for NaN, and for shapes before; both cost time."""
    nodes = onnx.load(bundle.file(f"{name}.onnx")).graph.node
    shares = {output for node in nodes if node.op_type == "Softmax" for output in node.output}
    readers = {node.op_type for node in nodes if shares & set(node.input)}
    assert shares
    assert "IsNaN" not in readers
    assert "Shape" not in {node.op_type for node in nodes} or name == "mask_decoder"


def test_foreign_operators_are_named(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Sharpen", ["x"], ["y"], domain="vendor")
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("vendor", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), tmp_path / "g.onnx")
    assert non_standard_operators(tmp_path / "g.onnx") == ["vendor::Sharpen"]
