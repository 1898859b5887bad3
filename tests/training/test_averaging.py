"""The mean of the weights of checkpoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from model.checkpoint import load, save
from model.config import preset_config
from model.segvlm import SegVLM, build_segvlm
from training.__main__ import main as run_command
from training.averaging import average
from training.commands.checkpoint_source import set_image_size
from training.optimal_threshold import set_optimal_threshold


def _network(seed: int, **overrides: object) -> SegVLM:
    torch.manual_seed(seed)
    return build_segvlm(preset_config("segvlm-lite", image_size=64, **overrides))


def test_every_weight_lies_between_by_the_shares(tmp_path: Path) -> None:
    """Through the command: weights and running statistics, what counts stays the first's."""
    networks = [_network(1), _network(2)]
    for count, network in enumerate(networks):
        for name, buffer in network.named_buffers():
            if name.endswith("running_mean"):
                buffer.fill_(count)
            elif name.endswith("num_batches_tracked"):
                buffer.fill_(count + 3)
        save(network, tmp_path / f"{count}.safetensors")
    paths = [str(tmp_path / f"{count}.safetensors") for count in range(2)]
    out = tmp_path / "mean.safetensors"
    assert run_command(["average", *paths, "--shares", "0.75", "0.25", "--out", str(out)]) == 0
    first, second = (network.state_dict() for network in networks)
    for name, tensor in load(out).state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(tensor, 0.75 * first[name] + 0.25 * second[name])
        else:
            assert torch.equal(tensor, first[name])
    assert run_command(["average", *paths, "--out", str(out)]) == 2  # it is not overwritten


def test_alike_ones_stay_what_they_are() -> None:
    expected = _network(1).state_dict()
    for name, tensor in average([_network(1)] * 2, [0.5, 0.5]).state_dict().items():
        torch.testing.assert_close(tensor, expected[name])


@pytest.mark.parametrize(
    ("shares", "told"),
    [([1.0], "a share for each"), ([1.5, -0.5], "above 0"), ([0.5, 0.6], "sum to 1")],
)
def test_shares_that_are_none(shares: list[float], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        average([_network(1)] * 2, shares)


def test_side_and_threshold_are_no_weights() -> None:
    """The side is the first's; a threshold, which fits one network, is nobody's."""
    smaller, larger = _network(1), _network(2)
    set_image_size(larger, 96)
    mean = average([larger, set_optimal_threshold(smaller, 1.5, 0.1)], [0.5, 0.5])
    assert mean.config == replace(_network(1).config, image_size=96)
    mean = average([set_optimal_threshold(_network(1), 1.5, 0.1), _network(1)], [0.5, 0.5])
    assert mean.config == _network(1).config
    expected = _network(1).state_dict()
    assert mean.state_dict().keys() == expected.keys()
    for name, tensor in mean.state_dict().items():
        torch.testing.assert_close(tensor, expected[name])


def test_other_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="different configurations"):
        average([_network(1), _network(1, selection=True)], [0.5, 0.5])
