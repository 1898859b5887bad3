"""An exported bundle answers what the network answers, or is not written."""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from model.bundle import REQUIRED_FILES, TORCHSCRIPT_FILES, WEIGHTS_FILE, Bundle, BundleConfig
from model.checkpoint import load
from model.config import PRESETS, preset_config
from model.image_encoder import ClipResNet
from model.probe import TOLERANCES
from model.segvlm import SegVLM
from model.tokenizer import clip_tokenizer
from tests.lively import lively
from training import export
from training.export import Artifacts, Description, ExportError, export_bundle
from training.exporting.half_precision import export_half_precision, positional_nodes
from training.exporting.onnx_files import export_graphs, non_standard_operators
from training.exporting.proof import Proof
from training.exporting.quantisation import export_int8
from training.exporting.torchscript import export_torchscript
from training.onnx_graphs import OnnxGraphs
from training.parity import answer, complaints, split_requests
from training.torch_graphs import TorchGraphs

GRAPHS = ("image_encoder", "text_encoder", "mask_decoder")
PHRASES = [
    "the dog",
    "a man in a red shirt on the left",
    "zebra",
    "left",
    "second cup from the left",
]


ONNX_ONLY = Artifacts(torchscript=False, safetensors=False)
DESCRIPTION = Description("test-model", "1", 0.35, {"data": "none"}, {"miou": 0.5})


def settle(model: SegVLM) -> None:
    """Let batch norms see data, so that activations neither grow nor fade through the layers."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)]
    for norm in norms:
        norm.momentum = None  # the mean of all that they see
        norm.reset_running_stats()
    images, tokens = real_inputs(model)
    with torch.no_grad():
        model.train()(torch.from_numpy(images), torch.from_numpy(tokens))
    model.eval()


def write(
    model: SegVLM, out: Path, version: str = "1", artifacts: Artifacts = ONNX_ONLY, **options: Any
) -> BundleConfig:
    description = replace(DESCRIPTION, version=version)
    return export_bundle(model, clip_tokenizer(), out, description, artifacts, **options)


def real_inputs(model: SegVLM) -> tuple[np.ndarray, np.ndarray]:
    size, count = model.config.image_size, len(PHRASES)
    ramp = np.linspace(0, 255, size, dtype=np.uint8)
    images = np.stack([np.roll(ramp, 9 * i)[None, :, None].repeat(size, 0) for i in range(count)])
    tokens = clip_tokenizer().encode(PHRASES, model.config.word_length).tokens
    return images.repeat(3, -1), tokens


@pytest.fixture
def model(lively_lite: SegVLM) -> SegVLM:
    return copy.deepcopy(lively_lite).train()


@pytest.fixture(scope="module")
def bundle(
    lively_lite: SegVLM, lively_graphs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    out = tmp_path_factory.mktemp("export") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "export_graphs", copies(lively_graphs))
        write(lively_lite, out, artifacts=Artifacts(), real_inputs=real_inputs(lively_lite))
    return Bundle.load(out)


@pytest.fixture
def reuse(lively_graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take the graphs of `lively_lite` instead of making them again."""
    monkeypatch.setattr(export, "export_graphs", copies(lively_graphs))


def copies(graphs: Path) -> Callable[[SegVLM, Path], None]:
    """An `export_graphs` that copies."""

    def copy_graphs(_: SegVLM, directory: Path) -> None:
        for name in GRAPHS:
            shutil.copy(graphs / f"{name}.onnx", directory)

    return copy_graphs


def test_the_bundle_says_what_it_is(bundle: Bundle, model: SegVLM) -> None:
    config = bundle.config
    assert (config.name, config.version, config.threshold) == ("test-model", "1", 0.35)
    assert (config.preset, config.image_size, config.word_length) == ("segvlm-lite", 64, 17)
    assert (config.mean, config.std) == (model.config.mean, model.config.std)
    assert (config.training, config.scores) == ({"data": "none"}, {"miou": 0.5})
    assert set(config.files) == {*REQUIRED_FILES, *TORCHSCRIPT_FILES, WEIGHTS_FILE}
    assert config.precisions == {}
    assert config.parity["onnxruntime"] == onnxruntime.__version__
    for artifact in (config.parity, config.parity["torchscript"], config.parity["safetensors"]):
        for kind, pairs in (("random", 1 + 2 + 6), ("real", 5 + 6)):
            measured = artifact[kind]
            assert measured["pairs"] == pairs
            assert measured["logits"] <= 1e-3
            assert measured["pad_mask"] == 0
            assert measured["mask_iou"] >= 0.999
        assert artifact["probe"] <= 1e-3
    assert config.parity["random"]["logits"] > 0
    assert config.parity["safetensors"]["random"]["logits"] == 0


def test_the_probe_is_answered_by_the_network(bundle: Bundle, model: SegVLM) -> None:
    probe = bundle.probe()
    eager = copy.deepcopy(model).eval()
    with torch.no_grad():
        logits = eager(torch.from_numpy(probe.images), torch.from_numpy(probe.tokens)).numpy()
    assert np.array_equal(probe.logits, logits)


def test_exporting_leaves_the_model_in_training(bundle: Bundle, model: SegVLM) -> None:
    assert model.training


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


def test_the_bundle_answers_like_the_model_from_its_own_tokenizer(
    bundle: Bundle, model: SegVLM
) -> None:
    images, _ = real_inputs(model)
    tokens = bundle.tokenizer().encode(PHRASES, 17).tokens
    eager = copy.deepcopy(model).eval()
    with torch.no_grad():
        expected = eager(torch.from_numpy(images), torch.from_numpy(tokens)).numpy()
    requests = list(split_requests(images, tokens))
    graphs = OnnxGraphs(bundle.graphs(), threads=1)
    answered = np.concatenate([answer(graphs, request)["logits"] for request in requests[:-1]])
    assert np.abs(answered - expected).max() <= 1e-3 * np.abs(expected).max()


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


# -- TorchScript and the checkpoint -------------------------------------------------------------


def constants_of(module: torch.jit.ScriptModule) -> list[tuple[Any, set[str]]]:
    """Every constant in the module's graph, blocks and calls included, with what reads it."""
    graph = module.inlined_graph  # nodes are gone with it
    blocks, found = [graph], []
    while blocks:
        for node in blocks.pop().nodes():
            blocks += node.blocks()
            if node.kind() == "prim::Constant":
                readers = {use.user.kind() for use in node.output().uses()}
                found.append((node.output().toIValue(), readers))
    return found


@pytest.mark.parametrize("name", TORCHSCRIPT_FILES)
def test_torchscript_is_bound_to_no_device(bundle: Bundle, name: str) -> None:
    """A constant device would send work to the CPU on a GPU; sizes as tensors would wait for it."""
    loaded = torch.jit.load(bundle.file(name))
    for module in (loaded, torch.jit.freeze(loaded.eval())):
        constants = constants_of(module)
        assert constants
        assert not [value for value, _ in constants if isinstance(value, torch.device)]
    # Not frozen, the weights are attributes, which move; what else is a tensor is a plain factor.
    for value, readers in constants_of(loaded):
        if isinstance(value, torch.Tensor):
            assert value.dim() == 0 and readers <= {"aten::mul", "aten::sub"}


def test_a_constant_device_would_be_seen() -> None:
    bound = torch.jit.trace(lambda x: x + torch.zeros(2, device=x.device), torch.ones(2))
    assert [value for value, _ in constants_of(bound) if isinstance(value, torch.device)]


def test_torchscript_stages_hold_their_own_weights_alone(bundle: Bundle) -> None:
    onnx_bytes, script_bytes = (
        [bundle.file(name).stat().st_size for name in names]
        for names in ([f"{name}.onnx" for name in GRAPHS], TORCHSCRIPT_FILES)
    )
    for ours, theirs in zip(script_bytes, onnx_bytes, strict=True):
        assert ours < 1.2 * theirs + 200_000


@pytest.mark.gpu
def test_torchscript_runs_where_it_is_loaded(bundle: Bundle, model: SegVLM) -> None:
    images, tokens = (torch.from_numpy(value) for value in real_inputs(model))
    image, text, mask = (
        torch.jit.load(bundle.file(name), map_location="cuda") for name in TORCHSCRIPT_FILES
    )
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(images, tokens)
        answer = mask(*image(images.cuda()), *text(tokens.cuda())).cpu()
    assert (answer - expected).abs().max() <= 1e-2 * expected.abs().max()  # TF32


def test_the_checkpoint_is_the_network(bundle: Bundle, model: SegVLM) -> None:
    loaded = load(bundle.file(WEIGHTS_FILE))
    assert loaded.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


@pytest.mark.usefixtures("reuse")
def test_torchscript_that_differs_is_not_written(
    model: SegVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of_another(_: SegVLM, directory: Path) -> None:
        other = copy.deepcopy(model).eval()
        with torch.no_grad():
            other.projector.mix.bias.add_(0.5)
        export_torchscript(other, directory)

    monkeypatch.setattr(export, "export_torchscript", of_another)
    with pytest.raises(ExportError, match="TorchScript differs from the network on random input"):
        write(model, tmp_path / "bundle", artifacts=replace(ONNX_ONLY, torchscript=True))
    assert list(tmp_path.iterdir()) == []


# -- what is refused ----------------------------------------------------------------------------


@pytest.mark.usefixtures("reuse")
@pytest.mark.parametrize(
    ("parameter", "told"),
    [
        ("projector.mix.bias", "logits differs"),
        ("projector.enhancement.spatial.offset.bias", "logits differs"),
        ("text_encoder.ln_final.weight", "words differs"),
        ("neck.lateral4.1.bias", "p4 differs"),
    ],
)
def test_a_graph_that_differs_is_not_written(
    model: SegVLM, tmp_path: Path, parameter: str, told: str
) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter(parameter).add_(0.5)
    with pytest.raises(ExportError, match=told):
        write(other, tmp_path / "made" / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("reuse")
def test_broken_weights_are_not_written(model: SegVLM, tmp_path: Path) -> None:
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter("projector.mix.bias").fill_(math.nan)
    with pytest.raises(ExportError, match="logits is not finite"):
        write(other, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("reuse")
def test_graphs_that_answer_no_numbers_are_not_written(
    model: SegVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float16 that overflows does so; it must not pass for a small difference."""
    decode = OnnxGraphs.decode
    monkeypatch.setattr(OnnxGraphs, "decode", lambda *given: decode(*given) * math.inf)
    with pytest.raises(ExportError, match="on random input, logits is not finite"):
        write(model, tmp_path / "bundle")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("reuse")
def test_difference_on_real_input_alone_is_found(model: SegVLM, tmp_path: Path) -> None:
    """One token's embedding is another: only an expression with that word tells."""
    other = copy.deepcopy(model)
    images, tokens = real_inputs(model)
    with torch.no_grad():
        other.text_encoder.token_embedding.weight[tokens[2, 1]].add_(1.0)
    with pytest.raises(ExportError, match="on real input"):
        write(other, tmp_path / "bundle", real_inputs=(images, tokens))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("reuse")
def test_an_existing_bundle_gives_way_only_when_told(model: SegVLM, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    write(model, out)
    with pytest.raises(ExportError, match="exists"):
        write(model, out, version="2")
    assert Bundle.load(out).config.version == "1"
    write(model, out, version="2", overwrite=True)
    assert Bundle.load(out).config.version == "2"


@pytest.mark.usefixtures("reuse")
def test_real_inputs_of_another_size_are_refused(model: SegVLM, tmp_path: Path) -> None:
    images, tokens = real_inputs(model)
    for wrong in ((images[:, :32], tokens), (images, tokens[:, :9]), (images[:0], tokens[:0])):
        with pytest.raises(ExportError, match="real_inputs must be"):
            write(model, tmp_path / "bundle", real_inputs=wrong)


def test_foreign_operators_are_named(tmp_path: Path) -> None:
    node = onnx.helper.make_node("Sharpen", ["x"], ["y"], domain="vendor")
    ends = [onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "xy"]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:])
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("vendor", 1)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opsets), tmp_path / "g.onnx")
    assert non_standard_operators(tmp_path / "g.onnx") == ["vendor::Sharpen"]


def test_masks_that_disagree_are_told() -> None:
    measured = dict.fromkeys(("p3", "p4", "p5", "words", "state", "pad_mask", "logits"), 0.0)
    assert complaints({**measured, "mask_iou": 0.9995}) == []
    assert complaints({**measured, "mask_iou": 0.998}) == ["the masks' IoU is only 0.9980"]
    assert "logits" in complaints({**measured, "logits": math.nan, "mask_iou": 1.0})[0]


@pytest.mark.parametrize("count", [1, 2, 3, 4, 13])
def test_requests_cover_every_pair_once_and_mix(count: int) -> None:
    images = np.arange(count)
    *batches, mixed = split_requests(images, images + 100)

    def pairs(indices: Sequence[int], texts: Sequence[int]) -> list[tuple[int, int]]:
        return list(zip(indices, texts, strict=True))

    met = [
        (int(request.images[i]), int(request.tokens[j]))
        for request in batches
        for i, j in pairs(request.image_of, request.text_of)
    ]
    assert met == [(i, i + 100) for i in range(count)]
    assert len(batches[0].images) == 1
    assert len(pairs(mixed.image_of, mixed.text_of)) == min(count, 2) * min(count, 3)


def export_everything(model: SegVLM, directory: Path) -> Proof:
    """Make every kind of artifact in `directory`; what to hold them against."""
    model.eval()
    export_graphs(model, directory)
    export_torchscript(model, directory)
    export_half_precision(directory)
    images, tokens = real_inputs(model)
    export_int8(directory, [(image, tokens[:2]) for image in images])
    return Proof(model, clip_tokenizer(), 0.35, None)


def measure(proof: Proof, directory: Path) -> dict[str, dict[str, Any]]:
    """What `proof` says of each artifact; what it refuses fails the test."""
    image, text, mask = GRAPHS
    files = {
        "fp32": (f"{image}.onnx", f"{text}.onnx", f"{mask}.onnx"),
        "fp16": (f"{image}.fp16.onnx", f"{text}.fp16.onnx", f"{mask}.fp16.onnx"),
        "int8": (f"{image}.int8.onnx", f"{text}.onnx", f"{mask}.int8.onnx"),
    }
    measured = {
        precision: proof.measure(precision, OnnxGraphs([directory / n for n in names]), precision)
        for precision, names in files.items()
    }
    script = TorchGraphs.of_torchscript([directory / name for name in TORCHSCRIPT_FILES])
    return {**measured, "torchscript": proof.measure("torchscript", script)}


def test_clip_encoders_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CLIP's blocks, its attention pool and the paper's projector, shallow for speed."""
    config = preset_config(
        "segvlm-rn101",
        image_encoder="clip-rn50",
        image_size=96,
        text_layers=1,
        decoder_layers=1,
        neck_widths=(64, 512, 128),
        projector_width=64,
        kernel_width=32,
    )
    model = lively(config)
    model.image_encoder = ClipResNet((1, 2, 1, 1), model.config.state_width)
    settle(model)
    monkeypatch.setitem(TOLERANCES, "int8", 1.0)  # weights that nothing has trained
    measured = measure(export_everything(model, tmp_path), tmp_path)
    assert 0 < measured["fp32"]["probe"] < measured["fp16"]["probe"] < measured["int8"]["probe"]


@pytest.mark.slow
@pytest.mark.timeout(1800)  # the largest takes two minutes of two free cores
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_preset_exports_at_its_own_size(preset: str, tmp_path: Path) -> None:
    model = lively(preset_config(preset))
    export_graphs(model, tmp_path)
    export_torchscript(model, tmp_path)
    proof = Proof(model, clip_tokenizer(), 0.35, None)
    proof.measure("ONNX", OnnxGraphs([tmp_path / f"{name}.onnx" for name in GRAPHS]))
    files = [tmp_path / name for name in TORCHSCRIPT_FILES]
    proof.measure("TorchScript", TorchGraphs.of_torchscript(files))
