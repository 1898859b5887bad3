"""A bundle's graphs become a network again that answers as they do and can go on learning."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.checkpoint import load
from model.config import preset_config
from model.segvlm import SegVLM, build_segvlm
from model.tokenizer import clip_tokenizer
from training.__main__ import main
from training.export import export_bundle


@pytest.fixture(scope="module")
def trained() -> SegVLM:
    """A small network whose norms have seen something."""
    torch.manual_seed(0)
    network = build_segvlm(preset_config("segvlm-lite", image_size=64))
    tokens = torch.from_numpy(clip_tokenizer().encode(["the dog", "a red car"] * 4, 17).tokens)
    for _ in range(3):
        network(torch.randint(0, 256, (8, 64, 64, 3), dtype=torch.uint8), tokens)
    return network.eval()


@pytest.fixture(scope="module")
def exported(trained: SegVLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("exported") / "bundle"
    export_bundle(
        trained,
        clip_tokenizer(),
        out,
        name="small",
        version="1",
        threshold=0.5,
        training={},
        scores={},
    )
    return out


@pytest.fixture(scope="module")
def recovered(exported: Path, tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("recovered") / "weights.safetensors"
    command = ["import-weights", "--preset", "segvlm-lite", "--from", str(exported)]
    assert main([*command, "--out", str(out), "--data", str(tiny_store)]) == 0
    return out


def test_it_answers_what_the_bundle_was_made_from(recovered: Path, trained: SegVLM) -> None:
    network = load(recovered)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 64, 64, 3), generator=generator, dtype=torch.uint8)
    phrases = ["the dog", "a red car on the left"]
    tokens = torch.from_numpy(clip_tokenizer().encode(phrases, 17).tokens)
    with torch.inference_mode():
        ours, theirs = network(images, tokens), trained(images, tokens)
    assert (ours - theirs).abs().max() <= 1e-3 * theirs.abs().max()


def test_its_norms_hold_statistics_again(recovered: Path) -> None:
    """Not the identity that folding leaves: training would lose the network's scales at once."""
    network = load(recovered)
    norm = network.neck.refine[1]
    assert isinstance(norm, torch.nn.BatchNorm2d)
    assert norm.running_mean is not None and norm.running_mean.abs().max() > 0
    assert norm.running_var is not None
    assert torch.allclose(norm.weight.square(), norm.running_var + norm.eps, rtol=1e-4)


def test_without_photos_it_says_what_is_missing(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["import-weights", "--preset", "segvlm-lite", "--from", str(exported)]
    assert main([*command, "--out", str(tmp_path / "none.safetensors")]) == 2
    assert "--data a phrase store with photos" in capsys.readouterr().err
