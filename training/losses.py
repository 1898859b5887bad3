"""The Robust Adaptive Fusion (RAF) loss of the SegVLM paper (arXiv 2505.19242, equations 4-8).

With p = sigmoid(logits), y in {0, 1} and sums over the pixels of a mask:

    BCE   = - sum [ y log p + (1 - y) log(1 - p) ]
    Focal = - sum [ a y (1 - p)^g log p + (1 - a) (1 - y) p^g log(1 - p) ]
    ADice = 1 - (2 sum w p y + e) / (sum w p + sum w y + e)
    RAF   = l1 BCE + l2 Focal + l3 ADice

Every function is pure, takes logits and targets of shape (B, H, W), and answers a scalar. Targets
may be bool, integer or float and hold 0 and 1. The arithmetic is in float32 even under autocast
(half and bfloat16 logits are widened); float64 logits stay float64. Everything is built on
`logsigmoid`, so values and gradients are finite for logits of any size that occurs (|x| = 100).

`pixel_weight` (B, H, W), optional, non-negative, is ours and not in the paper: 0 ignores a pixel
and 6 makes it count six times (the pixels of a sibling object, say). BCE and Focal become weighted
means (constant weights change nothing; all-zero weights give 0); in ADice it multiplies w.

What the paper leaves open and we chose: BCE and Focal are means over pixels by default (a sum
scales with the input size), ADice is taken for each sample and then averaged, and the gradient
flows through w, because w is part of the formula. Know what this means before relying on ADice:

- w = |p - y|. ADice is then E / (E + 2 sum_{y=1} p (1 - p) + e) with E = sum (p - y)^2. At p = y
  numerator and denominator both vanish and e / e makes the loss 0. On a target pixel the gradient
  changes its sign at p = 1 / (1 + ADice): beyond that the loss pulls the pixel *back*, to p = 0.5
  while the mask is mostly wrong (ADice near 1), towards 1 as it gets right. An empty target gives
  E / (E + e), which is already flat once a few pixels are wrong.
- w = (1 - p)^g. Every sum vanishes as p goes to 1, on the background too: an all-ones prediction
  scores e / e, loss 0, and a background pixel with p > 1 / (1 + g) can be pushed up. Only BCE and
  Focal hold this variant back.
- `detach_weight=True` holds w constant in the backward pass; the gradient is then that of a
  weighted Dice, which has the right sign on every pixel. The value of the loss is the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

DiceWeighting = Literal["error", "confidence", "none"]
Reduction = Literal["mean", "sum"]


@dataclass(frozen=True)
class RafConfig:
    """Coefficients of the RAF loss.

    bce_weight, focal_weight, dice_weight: l1, l2, l3.
    focal_alpha, focal_gamma: a and g of the focal term; a is the weight of target pixels.
    dice_epsilon: e, in pixels, > 0.
    dice_weighting: "error" w = |p - y|, "confidence" w = (1 - p)^dice_gamma, "none" w = 1, which is
        the ordinary Dice loss.
    detach_weight: keep the gradient out of w (see the module's docstring).
    reduction: BCE and Focal as "mean" over all pixels, or as the equations' "sum" over a sample's
        pixels, averaged over the batch.
    """

    bce_weight: float = 1.0
    focal_weight: float = 1.0
    dice_weight: float = 1.0
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    dice_epsilon: float = 1.0
    dice_weighting: DiceWeighting = "error"
    dice_gamma: float = 2.0
    detach_weight: bool = False
    reduction: Reduction = "mean"

    def __post_init__(self) -> None:
        non_negative = ("bce_weight", "focal_weight", "dice_weight", "focal_gamma", "dice_gamma")
        for name in non_negative:
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be 0 or more, not {getattr(self, name)}")
        if not 0 <= self.focal_alpha <= 1:
            raise ValueError(f"focal_alpha must be between 0 and 1, not {self.focal_alpha}")
        if not self.dice_epsilon > 0:
            raise ValueError(f"dice_epsilon must be positive, not {self.dice_epsilon}")
        if self.dice_weighting not in get_args(DiceWeighting):
            allowed = ", ".join(get_args(DiceWeighting))
            raise ValueError(f"dice_weighting must be one of {allowed}, not {self.dice_weighting}")
        if self.reduction not in get_args(Reduction):
            raise ValueError(f"reduction must be mean or sum, not {self.reduction}")


class RafTerms(NamedTuple):
    """The weighted total and its three unweighted terms, all scalars."""

    total: Tensor
    bce: Tensor
    focal: Tensor
    dice: Tensor


def bce(
    logits: Tensor,
    targets: Tensor,
    *,
    reduction: Reduction = "mean",
    pixel_weight: Tensor | None = None,
) -> Tensor:
    """Binary cross-entropy, equation 4. Shapes, dtypes and options: see the module."""
    with _full_precision(logits):
        x, y, m = _prepare(logits, targets, pixel_weight)
        loss = -(y * F.logsigmoid(x) + (1 - y) * F.logsigmoid(-x))
        return _reduce(loss, m, reduction)


def focal(
    logits: Tensor,
    targets: Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    reduction: Reduction = "mean",
    pixel_weight: Tensor | None = None,
) -> Tensor:
    """Focal loss, equation 5; `alpha` weighs target pixels, 1 - alpha the background."""
    with _full_precision(logits):
        x, y, m = _prepare(logits, targets, pixel_weight)
        log_p, log_q = F.logsigmoid(x), F.logsigmoid(-x)
        # exp(gamma log p) rather than p ** gamma: the latter's gradient is inf * 0 where p
        # underflows and gamma < 1.
        positive = alpha * y * torch.exp(gamma * log_q) * log_p
        negative = (1 - alpha) * (1 - y) * torch.exp(gamma * log_p) * log_q
        return _reduce(-(positive + negative), m, reduction)


def adaptive_dice(
    logits: Tensor,
    targets: Tensor,
    *,
    weighting: DiceWeighting = "error",
    gamma: float = 2.0,
    epsilon: float = 1.0,
    detach_weight: bool = False,
    pixel_weight: Tensor | None = None,
) -> Tensor:
    """Adaptive Dice loss, equations 6 and 7: per sample, then averaged; a value in [0, 1).

    `weighting` chooses w as `RafConfig.dice_weighting` does; `gamma` is used by "confidence" only.
    """
    with _full_precision(logits):
        x, y, m = _prepare(logits, targets, pixel_weight)
        p, q = torch.sigmoid(x), torch.sigmoid(-x)
        error = y * q + (1 - y) * p  # |p - y| for binary y, without the kink and the cancellation
        if weighting == "error":
            w = error
        elif weighting == "confidence":
            w = torch.exp(gamma * F.logsigmoid(-x))
        else:
            w = torch.ones_like(p)
        if detach_weight:
            w = w.detach()
        if m is not None:
            w = w * m
        # 1 - (2 Swpy + e) / (Swp + Swy + e) = Sw(p + y - 2py) / (Swp + Swy + e), where the bracket
        # is `error`: no subtraction of nearly equal numbers when the mask is nearly right.
        wrong = (w * error).flatten(1).sum(1)  # (B,)
        size = (w * (p + y)).flatten(1).sum(1)
        return (wrong / (size + epsilon)).mean()


def raf_loss(
    logits: Tensor,
    targets: Tensor,
    config: RafConfig,
    *,
    pixel_weight: Tensor | None = None,
) -> RafTerms:
    """RAF loss, equation 8, and its terms.

    logits (B, H, W) of any floating dtype; targets (B, H, W) of 0 and 1; pixel_weight (B, H, W)
    or None. Raises ValueError where the shapes differ.
    """
    bce_term = bce(logits, targets, reduction=config.reduction, pixel_weight=pixel_weight)
    focal_term = focal(
        logits,
        targets,
        alpha=config.focal_alpha,
        gamma=config.focal_gamma,
        reduction=config.reduction,
        pixel_weight=pixel_weight,
    )
    dice_term = adaptive_dice(
        logits,
        targets,
        weighting=config.dice_weighting,
        gamma=config.dice_gamma,
        epsilon=config.dice_epsilon,
        detach_weight=config.detach_weight,
        pixel_weight=pixel_weight,
    )
    total = (
        config.bce_weight * bce_term
        + config.focal_weight * focal_term
        + config.dice_weight * dice_term
    )
    return RafTerms(total, bce_term, focal_term, dice_term)


def _full_precision(logits: Tensor) -> torch.autocast:
    return torch.autocast(device_type=logits.device.type, enabled=False)


def _prepare(
    logits: Tensor, targets: Tensor, pixel_weight: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Check the shapes; bring all three to float32, or to float64 where the logits are."""
    if logits.ndim != 3 or logits.shape != targets.shape:
        raise ValueError(
            "logits and targets must both be (B, H, W), not "
            f"{tuple(logits.shape)} and {tuple(targets.shape)}; resize the targets to the logits"
        )
    if pixel_weight is not None and pixel_weight.shape != logits.shape:
        raise ValueError(
            f"pixel_weight must have the logits' shape {tuple(logits.shape)}, "
            f"not {tuple(pixel_weight.shape)}"
        )
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    weight = None if pixel_weight is None else pixel_weight.to(dtype)
    return logits.to(dtype), targets.to(dtype), weight


def _reduce(loss: Tensor, pixel_weight: Tensor | None, reduction: Reduction) -> Tensor:
    if pixel_weight is not None:
        loss = loss * pixel_weight
    if reduction == "sum":
        return loss.flatten(1).sum(1).mean()
    if pixel_weight is None:
        return loss.mean()
    # The floor only matters for all-zero weights, where the numerator is 0 too.
    return loss.sum() / pixel_weight.sum().clamp_min(torch.finfo(loss.dtype).tiny)
