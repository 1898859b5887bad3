"""Word vectors in float16 within a float32 graph: half as long, the same answers."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper

from model.bundle import Bundle
from model.checkpoint import save
from model.segvlm import SegVLM
from model.tokenizer import clip_tokenizer
from tests.training.exporting.small_exports import PHRASES
from training import export
from training.__main__ import main
from training.exporting.half_precision import export_half_precision
from training.exporting.half_tables import halve_tables, round_word_vectors

TABLE = "model.text_encoder.token_embedding.weight"


@pytest.fixture
def graph(lively_graphs: Path, tmp_path: Path) -> Path:
    """A text encoder in float32 whose word vectors float16 does not hold."""
    return Path(shutil.copy(lively_graphs / "text_encoder.onnx", tmp_path))


def table_of(path: Path) -> np.ndarray:
    found = {tensor.name: tensor for tensor in onnx.load(path).graph.initializer}
    return numpy_helper.to_array(found[TABLE])


def round_table(path: Path) -> None:
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == TABLE:
            rounded = numpy_helper.to_array(tensor).astype(np.float16).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(rounded, TABLE))
    onnx.save(model, path)


def answers(path: Path) -> list[np.ndarray]:
    tokens = clip_tokenizer().encode(PHRASES, 17).tokens
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return list(session.run(None, {"tokens": tokens}))


def test_rounded_word_vectors_take_half_and_answer_the_same(graph: Path) -> None:
    round_table(graph)
    before, size, table = answers(graph), graph.stat().st_size, table_of(graph)
    halve_tables(graph)
    assert table_of(graph).dtype == np.float16
    assert np.array_equal(table_of(graph), table)
    assert size - graph.stat().st_size == pytest.approx(2 * table.size, rel=0.001)
    for mine, others in zip(answers(graph), before, strict=True):
        assert mine.dtype == others.dtype
        assert np.array_equal(mine, others)


def test_what_float16_does_not_hold_stays_as_it_is(graph: Path) -> None:
    before = graph.read_bytes()
    halve_tables(graph)
    assert graph.read_bytes() == before


def test_a_table_that_is_also_multiplied_stays(tmp_path: Path) -> None:
    ends = [
        onnx.helper.make_tensor_value_info(name, kind, shape)
        for name, kind, shape in (
            ("at", onnx.TensorProto.INT64, [1]),
            ("row", onnx.TensorProto.FLOAT, [1, 2]),
            ("product", onnx.TensorProto.FLOAT, [1, 2]),
        )
    ]
    nodes = [
        onnx.helper.make_node("Gather", ["table", "at"], ["row"]),
        onnx.helper.make_node("MatMul", ["row", "table"], ["product"]),
    ]
    table = numpy_helper.from_array(np.eye(2, dtype=np.float32), "table")
    graph = onnx.helper.make_graph(nodes, "both", ends[:1], ends[1:], [table])
    path = tmp_path / "both.onnx"
    onnx.save(onnx.helper.make_model(graph), path)
    before = path.read_bytes()
    halve_tables(path)
    assert path.read_bytes() == before


def test_the_float16_graph_is_made_of_it_too(lively_graphs: Path, tmp_path: Path) -> None:
    for path in lively_graphs.glob("*.onnx"):
        shutil.copy(path, tmp_path)
    graph = tmp_path / "text_encoder.onnx"
    round_table(graph)
    halve_tables(graph)
    export_half_precision(tmp_path)
    exact, half = answers(graph), answers(tmp_path / "text_encoder.fp16.onnx")
    assert [part.dtype for part in half] == [np.float16, np.float16, np.bool_]
    for mine, others in zip(half, exact, strict=True):
        assert np.allclose(mine.astype(np.float32), others, atol=0.05)


def test_only_word_vectors_are_rounded(lively_lite: SegVLM) -> None:
    network = copy.deepcopy(lively_lite)
    round_word_vectors(network)
    for name, value in lively_lite.state_dict().items():
        expected = value.half().float() if name == "text_encoder.token_embedding.weight" else value
        assert torch.equal(network.state_dict()[name], expected), name


def test_the_command_line_rounds_before_it_exports(
    lively_lite: SegVLM, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported: list[SegVLM] = []

    def keep(network: SegVLM, *_: Any, **__: Any) -> Any:
        exported.append(network)
        return bundle.config

    monkeypatch.setattr(export, "export_bundle", keep)
    save(lively_lite, tmp_path / "best.safetensors")
    command = ["export", "--checkpoint", f"{tmp_path}/best.safetensors", "--out", f"{tmp_path}/out"]
    main(command)
    main([*command, "--half-words"])
    plain, rounded = (network.text_encoder.token_embedding.weight for network in exported)
    assert not torch.equal(rounded, plain)
    assert torch.equal(rounded, plain.half().float())
