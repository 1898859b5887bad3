"""fp16 and int8: what is exported, what it costs, and that what costs too much is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from model.bundle import GRAPH_FILES, STAGES, WEIGHTS_FILE, Bundle
from model.probe import TOLERANCES
from model.segvlm import SegVLM
from model.tokenizer import clip_tokenizer
from training import export
from training.__main__ import main
from training.data.lmdb_store import PhraseStore
from training.export import Artifacts, Description, ExportError, export_bundle
from training.exporting import iou_loss
from training.exporting.half_precision import positional_nodes
from training.exporting.onnx_files import non_standard_operators
from training.exporting.quantisation import calibration_requests, float_nodes
from training.exporting.recovery import network_of
from training.predictors import BundlePredictor

pytestmark = pytest.mark.long(25)

BOTH = Artifacts(torchscript=False, safetensors=False, fp16=True, int8=True)
DESCRIPTION = Description("tiny", "1", 0.5, {}, {})


@pytest.fixture(scope="module")
def store(tiny_store: Path) -> PhraseStore:
    return PhraseStore(tiny_store)


@pytest.fixture(scope="module")
def model(default_bundle: Path) -> SegVLM:
    """The bundled model's: int8 is made for weights that have been trained."""
    return network_of(Bundle.load(default_bundle))


@pytest.fixture(scope="module")
def bundle(
    model: SegVLM,
    store: PhraseStore,
    default_bundle: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    out = tmp_path_factory.mktemp("variants") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        # Those of `model`; to make them again would take most of the time.
        patch.setattr(export, "export_graphs", copies(default_bundle, *GRAPH_FILES))
        patch.setattr(export, "MOST_IOU_LOSS", 0.05)  # of three drawn photos
        export_bundle(model, clip_tokenizer(), out, DESCRIPTION, BOTH, store=store)
    return Bundle.load(out)


def copies(folder: Path, *names: str) -> Callable[..., None]:
    """Something that writes files of `folder` where an exporter would write its own."""

    def copy(*arguments: Any) -> None:
        (directory,) = (value for value in arguments if isinstance(value, Path))
        for name in names:
            shutil.copy(folder / name, directory)

    return copy


def test_they_are_in_the_bundle_with_what_they_cost(bundle: Bundle, store: PhraseStore) -> None:
    assert bundle.has(*(f"{stage}.fp16.onnx" for stage in STAGES))
    assert bundle.has("image_encoder.int8.onnx", "mask_decoder.int8.onnx")
    assert bundle.graphs("int8")[1].name == "text_encoder.onnx"
    phrases = sum(store.phrase_count(image_id) for image_id in store.image_ids("val"))
    for precision in ("fp16", "int8"):
        cost = bundle.config.precisions[precision]
        assert cost["phrases"] == phrases and cost["split"] == "val"
        assert cost["data"] == store.metadata()["fingerprint"]
        assert cost["iou_loss"] == pytest.approx(cost["mean_iou_fp32"] - cost["mean_iou"])
        parity = bundle.config.parity[precision]
        assert bundle.config.parity["probe"] < parity["probe"] <= TOLERANCES[precision]
        assert parity["random"]["pad_mask"] == 0
    agreement = {name: cost["mask_iou"] for name, cost in bundle.config.precisions.items()}
    assert 0.5 < agreement["int8"] < agreement["fp16"] < 1  # the three photos are mostly noise
    sizes = {p: sum(f.stat().st_size for f in bundle.graphs(p)[::2]) for p in ("fp32", "fp16")}
    assert sizes["fp16"] < 0.6 * sizes["fp32"]


def test_half_precision_keeps_names_and_makes_what_passes_between_float16(bundle: Bundle) -> None:
    found: dict[str, str] = {}
    for path in bundle.graphs("fp16"):
        onnx.checker.check_model(str(path), full_check=True)
        assert non_standard_operators(path) == []
        session = onnxruntime.InferenceSession(path)
        ends = (*session.get_inputs(), *session.get_outputs())
        found |= {end.name: end.type for end in ends}
        assert all(end.shape[0] == "batch" for end in ends)
    half = {f"{name}": "tensor(float16)" for name in ("p3", "p4", "p5", "words", "state")}
    assert found == {
        **half,
        "image": "tensor(uint8)",
        "tokens": "tensor(int64)",
        "pad_mask": "tensor(bool)",
        "logits": "tensor(float)",
    }


def test_where_to_sample_is_not_rounded_to_int8(bundle: Bundle) -> None:
    graph = onnx.load(bundle.graphs("int8")[2]).graph
    rounded = {
        name
        for node in graph.node
        for name in node.output
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    }
    nodes = positional_nodes(graph)
    assert {"DeformConv", "Conv"} <= {node.op_type for node in nodes}
    assert all(rounded.isdisjoint(node.input) for node in nodes)


def test_int8_computes_most_of_the_weights_products(bundle: Bundle) -> None:
    for index in (0, 2):
        path = bundle.graphs("int8")[index]
        assert non_standard_operators(path) == []
        graph = onnx.load(path).graph
        maker = {name: node.op_type for node in graph.node for name in node.output}
        weighted = [node for node in graph.node if node.op_type in ("Conv", "MatMul", "Gemm")]
        reduced = [node for node in weighted if maker.get(node.input[1]) == "DequantizeLinear"]
        kept = set(float_nodes(onnx.load(bundle.graphs()[index]).graph))
        assert len(reduced) > len(weighted) / 2
        assert {node.name for node in weighted} - {node.name for node in reduced} <= kept
    # Half of the range of 8 bits, so that the sums of processors without VNNI cannot overflow.
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.INT8:
            assert np.abs(onnx.numpy_helper.to_array(tensor)).max() <= 64


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_evaluation_repeats_what_a_precision_costs(
    bundle: Bundle, tiny_store: Path, tmp_path: Path, precision: str
) -> None:
    scores = tmp_path / "scores.json"
    command = ["evaluate", "--bundle", str(bundle.path), "--data", str(tiny_store), "--no-probes"]
    assert main([*command, "--precision", precision, "--json", str(scores)]) == 0
    measured = json.loads(scores.read_text("utf-8"))["all"]["mean_iou"]
    costs = bundle.config.precisions
    told = costs["int8"]["mean_iou_fp32"] if precision == "fp32" else costs[precision]["mean_iou"]
    assert measured == pytest.approx(told, abs=1e-6)
    assert 0.02 < measured < 0.98


def test_a_precision_that_is_not_there_is_told(
    bundle: Bundle, default_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", "nowhere.lmdb"]
    checkpoint = ["evaluate", "--checkpoint", "nowhere.safetensors", *data, "--precision"]
    committed = ["evaluate", "--bundle", str(default_bundle), *data, "--precision"]
    for command, told in (
        ([*committed, "fp16"], "has no fp16 graphs"),
        ([*committed, "bf16"], "no bf16 graphs"),
        ([*checkpoint, "int8"], "of a bundle's graphs"),
    ):
        assert main(command) == 2
        assert told in capsys.readouterr().err


def test_measured_costs_are_of_the_masks(bundle: Bundle, store: PhraseStore) -> None:
    """One predictor beside itself costs nothing; beside one that finds nothing, everything."""
    predictor = BundlePredictor(bundle, threads=1)
    nothing = BundlePredictor(bundle, threads=1)
    nothing.restore = lambda answer: (0 * each for each in predictor.restore(answer))  # type: ignore[method-assign]
    costs = iou_loss.measure_costs(
        {"fp32": predictor, "fp16": BundlePredictor(bundle, 1), "int8": nothing},
        store,
        0.5,
        progress=False,
    )
    assert costs["fp16"]["iou_loss"] == 0 and costs["fp16"]["mask_iou"] == 1
    assert costs["int8"]["iou_loss"] == costs["int8"]["mean_iou_fp32"] > 0
    assert costs["int8"]["mask_iou"] == 0


# -- what is refused ----------------------------------------------------------------------------


@pytest.fixture
def reuse(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take the graphs of `bundle` instead of making them again."""
    int8 = (f"{stage}.int8.onnx" for stage in STAGES[::2])
    monkeypatch.setattr(export, "export_graphs", copies(bundle.path, *GRAPH_FILES))
    monkeypatch.setattr(export, "export_int8", copies(bundle.path, *int8))


INT8 = replace(BOTH, fp16=False)


@pytest.mark.parametrize(("fp16", "int8", "told"), [(True, False, "fp16"), (True, True, "int8")])
def test_without_a_store_the_remedy_is_told(
    model: SegVLM, tmp_path: Path, fp16: bool, int8: bool, told: str
) -> None:
    artifacts = Artifacts(fp16=fp16, int8=int8)
    with pytest.raises(ExportError, match=f"{told} graphs are measured .* --data"):
        export_bundle(model, clip_tokenizer(), tmp_path / "out", DESCRIPTION, artifacts)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_tells_the_remedy_before_it_works(
    default_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["export", "--bundle", str(default_bundle), "--out", str(out), "--int8"]) == 2
    assert "name one with --data" in capsys.readouterr().err
    assert not out.exists()


def test_a_bundle_is_exported_again_with_what_it_said(
    default_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(export, "export_graphs", copies(default_bundle, *GRAPH_FILES))
    out, source = tmp_path / "out", Bundle.load(default_bundle)
    command = ["export", "--bundle", str(default_bundle), "--out", str(out), "--version", "9"]
    assert main([*command, "--artifacts", "onnx", "safetensors"]) == 0
    told = capsys.readouterr().out
    assert "segvlm-lite 9" in told and "onnx: logits differ" in told and "safetensors:" in told
    again = Bundle.load(out)
    plain = {name for name in source.config.files if not name.endswith(".int8.onnx")}
    assert set(again.config.files) == {*plain, WEIGHTS_FILE}
    assert (again.config.version, again.config.name) == ("9", source.config.name)
    for field in ("scores", "training", "threshold"):
        assert getattr(again.config, field) == getattr(source.config, field)
    assert again.probe().difference(source.probe().logits) <= 1e-4


@pytest.mark.usefixtures("reuse")
def test_what_loses_too_much_is_not_written(
    model: SegVLM, store: PhraseStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "MOST_IOU_LOSS", -1.0)  # whatever it loses
    with pytest.raises(ExportError, match=r"int8 graphs lose .* points .* Leave --int8 out"):
        export_bundle(model, clip_tokenizer(), tmp_path / "out", DESCRIPTION, INT8, store=store)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("reuse")
def test_what_answers_the_probe_otherwise_is_not_written(
    model: SegVLM, store: PhraseStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOLERANCES, "int8", 1e-6)
    with pytest.raises(ExportError, match="int8 ONNX graphs: its answer to the probe"):
        export_bundle(model, clip_tokenizer(), tmp_path / "out", DESCRIPTION, INT8, store=store)
    assert list(tmp_path.iterdir()) == []


def test_calibration_reads_training_photos_alone(
    model: SegVLM, store: PhraseStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = []
    photo = store.photo
    monkeypatch.setattr(store, "photo", lambda image_id: read.append(image_id) or photo(image_id))
    requests = calibration_requests(store, clip_tokenizer(), model.config)
    assert len(requests) == len(read) == len(set(read))
    assert set(read) <= set(store.image_ids("train"))
    square, tokens = requests[0]
    side = model.config.image_size
    assert square.shape == (side, side, 3) and tokens.shape[1] == 17


def test_the_limit_is_half_a_point() -> None:
    assert iou_loss.MOST_IOU_LOSS == export.MOST_IOU_LOSS == 0.005
