"""A bundle as what training starts from: the same answers, and batch norms fit to be trained."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from model.bundle import Bundle
from model.checkpoint import load
from model.folding import foldable_pairs
from model.segvlm import SegVLM, build_segvlm
from training.__main__ import main
from training.exporting.recovery import network_of
from training.norm_statistics import measure_norms


@pytest.fixture(scope="module")
def imported(
    default_bundle: Path, tiny_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The bundled model as the command imports it."""
    out = tmp_path_factory.mktemp("imported") / "start.safetensors"
    command = ["import-weights", "--from", str(default_bundle), "--data", str(tiny_store)]
    assert main([*command, "--out", str(out)]) == 0
    return out


@pytest.fixture(scope="module")
def network(imported: Path) -> SegVLM:
    return load(imported)


def _norms(network: SegVLM) -> list[tuple[nn.Module, _BatchNorm]]:
    parts = dict(network.named_modules())
    pairs = [(parts[layer], parts[norm]) for layer, norm in foldable_pairs(network)]
    return [(layer, norm) for layer, norm in pairs if isinstance(norm, _BatchNorm)]


def test_it_answers_the_bundle_s_probe_as_the_bundle_does(
    network: SegVLM, default_bundle: Path
) -> None:
    probe = Bundle.load(default_bundle).probe()
    with torch.inference_mode():
        answer = network(torch.from_numpy(probe.images), torch.from_numpy(probe.tokens))
    assert probe.difference(answer.numpy()) <= 1e-4


def test_the_selection_bias_of_the_export_is_taken_back(
    default_bundle: Path, imported: Path, tiny_store: Path, tmp_path: Path
) -> None:
    out = tmp_path / "before.safetensors"
    command = ["import-weights", "--from", str(default_bundle), "--data", str(tiny_store)]
    assert main([*command, "--selection-bias", "-0.75", "--out", str(out)]) == 0
    biases = []
    for path in (imported, out):
        selection = load(path).selection
        assert selection is not None
        biases.append(float(selection.compared.outer.bias[-1].detach()))
    assert biases[1] == pytest.approx(biases[0] - 0.75, abs=1e-6)


def test_layers_before_a_norm_are_as_large_as_new_ones(network: SegVLM) -> None:
    """Else a learning rate that suits some of them destroys others, which is how this was found."""
    new = dict(build_segvlm(network.config).named_modules())
    parts = dict(network.named_modules())
    for name, _ in foldable_pairs(network):
        weight, fresh = parts[name].weight, new[name].weight
        assert isinstance(weight, Tensor) and isinstance(fresh, Tensor)
        sizes = weight.detach().flatten(1).square().mean(1).sqrt()
        wanted = fresh.detach().square().mean().sqrt()
        assert sizes.median() == pytest.approx(float(wanted), rel=0.25), name


def test_a_norm_in_training_gives_about_what_it_gives_in_evaluation(
    default_bundle: Path,
) -> None:
    """On what it was measured on, all at once: batch statistics are then the running ones."""
    network = network_of(Bundle.load(default_bundle))
    before = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 96, 96, 3), dtype=torch.uint8, generator=generator)
    tokens = torch.zeros(6, network.config.word_length, dtype=torch.int64)
    tokens[:, :3] = torch.tensor([49406, 1929, 49407])
    tokens[::2, 1] = 2368
    names = measure_norms(network, [(images[:2], tokens[:2]), (images[2:], tokens[2:])])
    assert len(names) == len(_norms(network)) > 50
    with torch.inference_mode():
        expected = before.encode_image(images)
        for level, same in zip(network.encode_image(images), expected, strict=True):
            torch.testing.assert_close(level, same, rtol=1e-3, atol=1e-3)
        for _, norm in _norms(network):
            norm.train()
        levels = network.encode_image(images)
    for level, same in zip(levels, expected, strict=True):
        assert (level - same).abs().mean() <= 0.02 * same.abs().mean()
    with torch.inference_mode():
        for _, norm in _norms(before):
            norm.train()
        lost = before.encode_image(images)
    assert (lost[2] - expected[2]).abs().mean() > 0.2 * expected[2].abs().mean()


def test_norms_that_have_their_statistics_are_left_alone(network: SegVLM) -> None:
    """As those of a bundle with its checkpoint: nothing is run, nothing changes."""
    before = copy.deepcopy(network.state_dict())
    assert measure_norms(network, []) == []
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_nothing_to_measure_on_is_told(default_bundle: Path) -> None:
    with pytest.raises(ValueError, match="at least one photo"):
        measure_norms(network_of(Bundle.load(default_bundle)), [])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--preset", "segvlm-lite", "--from", "BUNDLE", "--data", "STORE"], "leave it out"),
        (["--from", "BUNDLE"], "give --data"),
        (["--from", "imagenet"], "--preset is needed"),
        (["--preset", "segvlm-lite", "--from", "imagenet", "--data", "STORE"], "is for a bundle"),
        (
            ["--preset", "segvlm-lite", "--from", "imagenet", "--selection-bias", "1"],
            "is for a bundle",
        ),
    ],
)
def test_options_that_do_not_go_together_are_told(
    options: list[str],
    told: str,
    default_bundle: Path,
    tiny_store: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = {"BUNDLE": str(default_bundle), "STORE": str(tiny_store)}
    command = ["import-weights", *(known.get(each, each) for each in options)]
    assert main([*command, "--out", str(tmp_path / "out.safetensors")]) != 0
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out.safetensors").exists()
