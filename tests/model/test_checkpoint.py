"""Checkpoints go out and come back whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from model import checkpoint
from model.config import preset_config
from model.segvlm import SegVLM, build_segvlm
from tests.model.small_networks import equal_states


@pytest.fixture(scope="module")
def lite() -> SegVLM:
    torch.manual_seed(0)
    return build_segvlm(preset_config("segvlm-lite", image_size=64)).eval()


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
