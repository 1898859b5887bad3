"""The RAF loss against the paper's equations, written out in numpy, and at its edges."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from training.losses import RafConfig, adaptive_dice, bce, focal, raf_loss

Array = npt.NDArray[np.float64]
Weighting = Literal["error", "confidence", "none"]
WEIGHTINGS: tuple[Weighting, ...] = ("error", "confidence", "none")


def equations(x: Array, y: Array, config: RafConfig) -> tuple[float, float, float, float]:
    """Equations 4-8 as printed: one sample after the other, float64, from probabilities."""
    bces, focals, dices = [], [], []
    a, g, e = config.focal_alpha, config.focal_gamma, config.dice_epsilon
    for sample_x, sample_y in zip(x, y, strict=True):
        p = 1 / (1 + np.exp(-sample_x))
        t = sample_y
        bces.append(-(t * np.log(p) + (1 - t) * np.log(1 - p)))
        focals.append(
            -(a * t * (1 - p) ** g * np.log(p) + (1 - a) * (1 - t) * p**g * np.log(1 - p))
        )
        if config.dice_weighting == "error":
            w = np.abs(p - t)
        elif config.dice_weighting == "confidence":
            w = (1 - p) ** config.dice_gamma
        else:
            w = np.ones_like(p)
        dices.append(1 - (2 * (w * p * t).sum() + e) / ((w * p).sum() + (w * t).sum() + e))
    scale = 1.0 if config.reduction == "mean" else float(x[0].size)
    terms = np.mean(bces) * scale, np.mean(focals) * scale, np.mean(dices)
    total = (
        config.bce_weight * terms[0]
        + config.focal_weight * terms[1]
        + config.dice_weight * terms[2]
    )
    return float(total), float(terms[0]), float(terms[1]), float(terms[2])


def sample(seed: int = 0, shape: tuple[int, ...] = (3, 5, 7)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(shape, generator=generator, dtype=torch.float64)
    targets = (torch.rand(shape, generator=generator) < 0.4).to(torch.float64)
    return logits, targets


CONFIGS = [
    *(RafConfig(dice_weighting=weighting) for weighting in WEIGHTINGS),
    RafConfig(dice_weighting="confidence", dice_gamma=0.5, focal_gamma=0.5, reduction="sum"),
    RafConfig(
        bce_weight=0.3,
        focal_weight=2.0,
        dice_weight=1.7,
        focal_alpha=0.5,
        focal_gamma=3.0,
        dice_epsilon=0.01,
    ),
    RafConfig(focal_gamma=0.0, dice_weighting="confidence", dice_gamma=0.0, detach_weight=True),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_equals_the_equations(config: RafConfig) -> None:
    logits, targets = sample()
    expected = equations(logits.numpy(), targets.numpy(), config)
    in_float64 = raf_loss(logits, targets, config)
    assert all(term.dtype == torch.float64 for term in in_float64)
    np.testing.assert_allclose([t.item() for t in in_float64], expected, rtol=1e-12)
    in_float32 = raf_loss(logits.float(), targets.bool(), config)
    np.testing.assert_allclose([t.item() for t in in_float32], expected, rtol=2e-6)


@pytest.mark.parametrize("config", [c for c in CONFIGS if not c.detach_weight])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients(config: RafConfig, weighted: bool) -> None:
    logits, targets = sample(1, (2, 3, 4))
    weight = 1 + 5 * sample(2, (2, 3, 4))[1] if weighted else None
    logits.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: tuple(raf_loss(x, targets, config, pixel_weight=weight)), (logits,)
    )


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_detached_weight_has_the_gradient_of_a_weighted_dice(weighting: Weighting) -> None:
    logits, targets = sample(3, (2, 4, 4))
    logits.requires_grad_()
    loss = adaptive_dice(logits, targets, weighting=weighting, detach_weight=True)
    (gradient,) = torch.autograd.grad(loss, logits)
    p = torch.sigmoid(logits.detach())
    w = {"error": (p - targets).abs(), "confidence": (1 - p) ** 2, "none": torch.ones_like(p)}
    (expected,) = torch.autograd.grad(
        adaptive_dice(logits, targets, weighting="none", pixel_weight=w[weighting]), logits
    )
    torch.testing.assert_close(gradient, expected)
    assert bool((gradient[targets > 0] < 0).all()) and bool((gradient[targets == 0] > 0).all())


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("magnitude", [100.0, 1e4])
@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_large_logits(weighting: Weighting, magnitude: float, gamma: float) -> None:
    config = RafConfig(dice_weighting=weighting, focal_gamma=gamma, dice_gamma=gamma)
    y = torch.tensor([[[1.0, 1.0, 0.0, 0.0]]])
    sign = torch.tensor([[[1.0, -1.0, 1.0, -1.0]]])  # right, wrong, wrong, right
    logits = (magnitude * sign).requires_grad_()
    terms = raf_loss(logits, y, config)
    assert terms.bce.item() == pytest.approx(magnitude / 2)
    assert terms.focal.item() == pytest.approx((0.25 + 0.75) * magnitude / 4)
    # w p and w y are 0 or 1 here: "error" counts the two wrong pixels, "confidence" the missed one.
    dice = {"error": 2 / 3, "confidence": 1 / 2, "none": 2 / 5}[weighting]
    assert terms.dice.item() == pytest.approx(dice)
    (gradient,) = torch.autograd.grad(terms.bce + terms.focal + terms.dice, logits)
    assert bool(torch.isfinite(gradient).all())
    assert gradient[0, 0, 1] < 0 < gradient[0, 0, 2]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("fill", [0.0, 1.0])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_empty_and_full_targets(weighting: Weighting, fill: float, scale: float) -> None:
    logits = (scale * sample(4)[0].sign()).float().requires_grad_()
    terms = raf_loss(logits, torch.full(logits.shape, fill), RafConfig(dice_weighting=weighting))
    (gradient,) = torch.autograd.grad(terms.total, logits)
    assert bool(torch.isfinite(torch.stack(terms)).all())
    assert bool(torch.isfinite(gradient).all()) and bool((gradient != 0).any())
    assert 0 <= terms.dice.item() < 1


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_perfect_mask_costs_nothing(weighting: Weighting) -> None:
    targets = sample(5)[1].float()
    terms = raf_loss(200 * targets - 100, targets, RafConfig(dice_weighting=weighting))
    assert all(term.item() == pytest.approx(0, abs=1e-7) for term in terms)


def test_autocast_gives_the_float32_result() -> None:
    logits, targets = sample(6)
    config = RafConfig()
    narrow = logits.bfloat16()
    expected = raf_loss(narrow.float(), targets, config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        terms = raf_loss(narrow, targets, config)
    for term, other in zip(terms, expected, strict=True):
        assert term.dtype == torch.float32
        assert torch.equal(term, other)


def test_documented_edges_of_the_adaptive_weights() -> None:
    """What the module's docstring warns of is what happens."""
    y = torch.zeros(1, 8, 8)
    y[0, 0, 0] = 1
    everything = torch.full((1, 8, 8), 100.0)
    assert adaptive_dice(everything, y, weighting="confidence").item() == pytest.approx(0, abs=1e-6)
    assert adaptive_dice(everything, y, weighting="error").item() > 0.9

    # One target pixel near p = 1 / (1 + loss), everything else wrong: the sign changes there.
    logits = torch.full((1, 8, 8), 2.0)
    for p, pulled_back in ((0.4, False), (0.8, True)):
        logits[0, 0, 0] = float(np.log(p / (1 - p)))
        x = logits.clone().requires_grad_()
        loss = adaptive_dice(x, y, weighting="error")
        assert (p > 1 / (1 + loss.item())) == pulled_back
        (gradient,) = torch.autograd.grad(loss, x)
        assert (gradient[0, 0, 0].item() > 0) == pulled_back


@pytest.mark.parametrize("term", [bce, focal, adaptive_dice])
def test_zero_pixel_weight_ignores_a_pixel(term: Callable[..., Tensor]) -> None:
    logits, targets = sample(7, (2, 3, 4))
    weight = torch.ones_like(logits)
    weight[:, :, 3] = 0
    assert term(logits, targets, pixel_weight=weight).item() == pytest.approx(
        term(logits[:, :, :3], targets[:, :, :3]).item(), rel=1e-12
    )
    assert term(logits, targets, pixel_weight=0 * weight).item() == 0


@pytest.mark.parametrize("term", [bce, focal])
def test_pixel_weight_is_a_weighted_mean(term: Callable[..., Tensor]) -> None:
    logits, targets = sample(8, (1, 1, 2))
    first, second = (term(logits[..., i : i + 1], targets[..., i : i + 1]) for i in (0, 1))
    weight = torch.tensor([[[6.0, 1.0]]])
    expected = (6 * first + second) / 7
    torch.testing.assert_close(term(logits, targets, pixel_weight=weight), expected)


def test_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match="resize the targets"):
        bce(torch.zeros(1, 4, 4), torch.zeros(1, 8, 8))
    with pytest.raises(ValueError, match="pixel_weight"):
        focal(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4), pixel_weight=torch.zeros(4, 4))
    with pytest.raises(ValueError, match="dice_epsilon"):
        RafConfig(dice_epsilon=0)
    with pytest.raises(ValueError, match="focal_alpha"):
        RafConfig(focal_alpha=1.5)
    with pytest.raises(ValueError, match="dice_gamma"):
        RafConfig(dice_gamma=-1)
    with pytest.raises(ValueError, match="dice_weighting"):
        RafConfig(dice_weighting="focal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="reduction"):
        RafConfig(reduction="none")  # type: ignore[arg-type]
