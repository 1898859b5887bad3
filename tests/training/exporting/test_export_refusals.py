"""What differs from the network is not written."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.segvlm import SegVLM
from tests.training.exporting.small_exports import ONNX_ONLY, real_inputs, write
from training import export
from training.export import ExportError
from training.exporting.torchscript import export_torchscript
from training.onnx_graphs import OnnxGraphs
from training.parity import complaints


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
def test_real_inputs_of_another_size_are_refused(model: SegVLM, tmp_path: Path) -> None:
    images, tokens = real_inputs(model)
    for wrong in ((images[:, :32], tokens), (images, tokens[:, :9]), (images[:0], tokens[:0])):
        with pytest.raises(ExportError, match="real_inputs must be"):
            write(model, tmp_path / "bundle", real_inputs=wrong)


def test_masks_that_disagree_are_told() -> None:
    measured = dict.fromkeys(("p3", "p4", "p5", "words", "state", "pad_mask", "logits"), 0.0)
    assert complaints({**measured, "mask_iou": 0.9995}) == []
    assert complaints({**measured, "mask_iou": 0.998}) == ["the masks' IoU is only 0.9980"]
    assert "logits" in complaints({**measured, "logits": math.nan, "mask_iou": 1.0})[0]
