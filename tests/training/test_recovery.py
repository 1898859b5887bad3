"""A network read back from a bundle's graphs, and what a probe says of networks that are not it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.bundle import WEIGHTS_FILE, Bundle
from model.deformable import DeformableConv2d
from model.folding import fold_batch_norms
from model.probe import TOLERANCES, Probe
from model.segvlm import SegVLM, build_segvlm
from training.exporting.errors import ExportError
from training.exporting.recovery import network_of


@pytest.fixture(scope="module")
def bundle(default_bundle: Path) -> Bundle:
    bundle = Bundle.load(default_bundle)
    assert not bundle.has(WEIGHTS_FILE)  # or the test would read that
    return bundle


@pytest.fixture(scope="module")
def network(bundle: Bundle) -> SegVLM:
    return network_of(bundle)


@pytest.fixture(scope="module")
def probe(bundle: Bundle) -> Probe:
    return bundle.probe()


@torch.inference_mode()
def difference(network: SegVLM, probe: Probe, images: Tensor | None = None) -> float:
    images = torch.from_numpy(probe.images) if images is None else images
    return probe.difference(network(images, torch.from_numpy(probe.tokens)).float().numpy())


def test_the_bundled_model_is_read_back_from_its_graphs(network: SegVLM, probe: Probe) -> None:
    assert not network.training
    assert difference(network, probe) <= 1e-4


def test_a_configuration_of_other_sizes_is_told(bundle: Bundle) -> None:
    other = replace(bundle, config=replace(bundle.config, preset="segvlm-rn101"))
    with pytest.raises(ExportError, match=r"cannot be read back .* from its checkpoint"):
        network_of(other)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_within_its_tolerance(
    network: SegVLM, probe: Probe, dtype: torch.dtype
) -> None:
    half = fold_batch_norms(network)
    exact = [part for part in half.modules() if isinstance(part, DeformableConv2d)]
    weights = [copy.deepcopy(part.state_dict()) for part in exact]
    half.to(dtype)
    for part, state in zip(exact, weights, strict=True):
        part.float().load_state_dict(state)
    tolerance = TOLERANCES[{torch.float16: "fp16", torch.bfloat16: "bf16"}[dtype]]
    assert difference(network, probe) < difference(half, probe) <= 0.7 * tolerance


def zeroed(parameter: str) -> Callable[[SegVLM], None]:
    def zero(network: SegVLM) -> None:
        network.get_parameter(parameter).zero_()

    return zero


def shuffled(parameter: str) -> Callable[[SegVLM], None]:
    def shuffle(network: SegVLM) -> None:
        weight = network.get_parameter(parameter)
        order = torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))
        weight.copy_(weight[order])

    return shuffle


def black_for_mean(network: SegVLM) -> None:
    network.mean.zero_()


@pytest.mark.parametrize(
    "harm",
    [
        zeroed("image_encoder.trunk.conv_stem.weight"),
        shuffled("image_encoder.trunk.blocks.3.0.conv_pw.weight"),
        zeroed("neck.lateral4.0.weight"),
        shuffled("neck.refine.0.weight"),
        zeroed("decoder.norm.weight"),
        zeroed("projector.enhancement.spatial.weight"),
        shuffled("projector.dynamic.kernel.weight"),
        zeroed("projector.mix.weight"),
        black_for_mean,
    ],
)
def test_a_harmed_network_differs_far_more_than_any_precision(
    network: SegVLM, probe: Probe, harm: Callable[[SegVLM], None]
) -> None:
    harmed = copy.deepcopy(network)
    with torch.no_grad():
        harm(harmed)
    assert difference(harmed, probe) >= 1.2 * max(TOLERANCES.values())


def test_a_foreign_network_and_foreign_input_differ(network: SegVLM, probe: Probe) -> None:
    torch.manual_seed(0)
    assert difference(build_segvlm(network.config).eval(), probe) > 1
    images = torch.from_numpy(probe.images)
    for wrong in (images.flip(0), images.flip(1), images.flip(2), images.transpose(1, 2)):
        assert difference(network, probe, wrong.contiguous()) >= 1.2 * max(TOLERANCES.values())
    exchanged = replace(probe, tokens=probe.tokens[::-1].copy())
    assert difference(network, exchanged) >= 1.2 * max(TOLERANCES.values())
    blue_first = images.flip(-1).contiguous()
    assert difference(network, probe, blue_first) >= 1.2 * max(TOLERANCES.values())
