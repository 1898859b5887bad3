"""Official CRIS checkpoints come in whole or not at all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

import training.import_weights as import_weights_module
from model import checkpoint
from model.checkpoint import from_cris
from model.segvlm import SegVLM, build_segvlm
from tests.model.small_networks import equal_states, small
from training.import_weights import import_weights

_CRIS_NAMES = {
    "neck.sentence.": "neck.txt_proj.",
    "neck.lateral5.": "neck.f1_v_proj.",
    "projector.enhancement.spatial.": "proj.vis.1.0.",
    "projector.enhancement.norm.": "proj.vis.1.1.",
    "projector.conv.": "proj.vis.3.",
    "projector.mix.": "proj.vis.4.",
    "projector.dynamic.kernel.": "proj.txt.",
    "neck.gate.": "neck.norm_layer.",
    "neck.lateral4.": "neck.f2_v_proj.",
    "neck.lateral3.": "neck.f3_v_proj.",
    "neck.merge4.": "neck.f2_cat.",
    "neck.merge3.": "neck.f3_cat.",
    "neck.query5.": "neck.f4_proj5.",
    "neck.query4.": "neck.f4_proj4.",
    "neck.query3.": "neck.f4_proj3.",
    "neck.aggregate.": "neck.aggr.",
    "neck.coordinate_conv.": "neck.coordconv.0.conv1.",
    "neck.refine.": "neck.coordconv.1.",
    "image_encoder.": "backbone.visual.",
    "text_encoder.blocks.": "backbone.transformer.resblocks.",
    "text_encoder.": "backbone.",
}


def official_name(name: str) -> str:
    for ours, theirs in _CRIS_NAMES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name.replace(".cross_attn.", ".multihead_attn.")


@pytest.fixture(scope="module")
def cris() -> SegVLM:
    torch.manual_seed(0)
    return build_segvlm(small("cris-rn50")).eval()


@pytest.fixture
def official(cris: SegVLM) -> dict[str, Tensor]:
    return {f"module.{official_name(name)}": value for name, value in cris.state_dict().items()}


def test_cris_weights_start_the_enhancement_block(
    cris: SegVLM, official: dict[str, Tensor]
) -> None:
    official = {name: v for name, v in official.items() if not name.endswith("batches_tracked")}
    model, report = from_cris(official, small("segvlm-rn101"))
    ours = cris.state_dict()
    assert report.left_over == ()
    new = {name for name in report.made_new if not name.endswith("batches_tracked")}
    parts = ("spatial.offset", "se.squeeze", "se.excite", "residual")
    assert new == {
        f"projector.enhancement.{part}.{leaf}" for part in parts for leaf in ("weight", "bias")
    }
    assert len(report.loaded) == len(official)
    assert all(torch.equal(model.state_dict()[name], ours[name]) for name in report.loaded)
    assert not model.training
    assert "projector.enhancement (" in str(report)


@pytest.mark.parametrize("change", ["missing", "unknown", "reshaped", "twice"])
def test_cris_import_is_strict(official: dict[str, Tensor], change: str) -> None:
    name = "module.neck.aggr.0.weight"
    value = official.pop(name)
    if change == "unknown":
        official |= {name: value, "module.neck.aggregator.0.weight": value}
    elif change == "reshaped":
        official[name] = value[:, :-1]
    elif change == "twice":
        official |= {name: value, name.removeprefix("module."): value}
    told = {"missing": "neck.aggregate.0.weight", "reshaped": "neck.aggregate.0.weight"}
    with pytest.raises(ValueError, match=told.get(change, "neck.aggr")):
        from_cris(official, small("cris-rn50"))


def test_cris_of_another_preset_is_refused(official: dict[str, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"of another shape: .*another preset's"):
        from_cris(official, replace(small("cris-rn50"), state_width=64))
    with pytest.raises(ValueError, match="segvlm-lite is not built on CLIP"):
        from_cris(official, "segvlm-lite")


def test_imported_weights_become_a_checkpoint(
    cris: SegVLM,
    official: dict[str, Tensor],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(import_weights_module, "preset_config", small)
    source, out = tmp_path / "best.pth", tmp_path / "cris.safetensors"
    torch.save({"epoch": 50, "state_dict": official}, source)
    report = import_weights("cris-rn50", str(source), out)
    assert report.source == "official CRIS checkpoint"
    assert equal_states(checkpoint.load(out).state_dict(), cris.state_dict())

    backbone = {
        name.removeprefix("module.backbone."): value
        for name, value in official.items()
        if name.startswith("module.backbone.") and ".connect." not in name
    }
    torch.save(backbone, source)
    report = import_weights("cris-rn50", str(source), out)
    assert report.source == "CLIP weights"
    assert len(report.loaded) == len(backbone)
    loaded = checkpoint.load(out).state_dict()
    assert all(torch.equal(loaded[name], cris.state_dict()[name]) for name in report.loaded)
