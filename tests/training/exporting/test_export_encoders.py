"""Every kind of artifact of the other encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from model.bundle import TORCHSCRIPT_FILES
from model.config import PRESETS, preset_config
from model.image_encoder import ClipResNet
from model.probe import TOLERANCES
from model.segvlm import SegVLM
from model.tokenizer import clip_tokenizer
from tests.lively import lively
from tests.training.exporting.small_exports import GRAPHS, real_inputs
from training.exporting.half_precision import export_half_precision
from training.exporting.onnx_files import export_graphs
from training.exporting.proof import Proof
from training.exporting.quantisation import export_int8
from training.exporting.torchscript import export_torchscript
from training.onnx_graphs import OnnxGraphs
from training.torch_graphs import TorchGraphs

pytestmark = pytest.mark.long(55)


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
    """CLIP's blocks, its attention pool and the paper's projector, shallow and narrow for speed."""
    config = preset_config(
        "segvlm-rn101",
        image_encoder="clip-rn50",
        image_size=96,
        text_layers=1,
        text_width=64,
        text_embedding_width=64,
        state_width=64,
        decoder_layers=1,
        decoder_ffn=64,
        neck_widths=(32, 64, 64),
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
