"""For each answer the threshold at which its mask may expect the most IoU.

B = batch, h, w = sides of the logits.

Where every pixel belongs to the target with its own probability p, independently, a mask M may
expect about sum(p in M) / (|M| + sum(p outside M)). The mask of the largest such IoU, A, is where
p > A / (1 + A): a sure answer wants a high threshold, a doubtful one a low threshold (Nowozin,
"Optimal Decisions from Probabilistic Models: the Intersection-over-Union Case", CVPR 2014). A ratio
is found by going back and forth between A and its mask (Dinkelbach, "On Nonlinear Fractional
Programming", 1967), which needs a few rounds. A network's probabilities are not quite those of its
pixels, so the threshold gets a factor, to be chosen on validation photos.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

FACTORS = (0.1, 1.9)
"""What a factor must lie between: A / (1 + A) is at most a half, and a threshold below 1."""

_FIRST, _ROUNDS = 0.25, 3
"""The first threshold, as a share of a map's largest probability, and how often it is bettered."""
_SMALLEST = 1e-3
"""Threshold, before its logit."""
_EMPTY = -1.0
"""Largest logit of an answer that is to be empty at threshold a half."""


class OptimalThreshold(nn.Module):
    """Moves the logits of each answer so that a half is its own threshold.

    factor: of the threshold that is best for calibrated probabilities. least_iou: an answer whose
    best mask may expect less is empty at a half; its logits keep their order.

    Raises:
        ValueError: for a factor outside `FACTORS` or a least IoU outside [0, 1).
    """

    factor: Tensor
    least_iou: Tensor

    def __init__(self, factor: float = 1.0, least_iou: float = 0.0) -> None:
        super().__init__()
        low, high = FACTORS
        if not low <= factor <= high:
            raise ValueError(f"the factor of a threshold must lie in {low}..{high}, not {factor}")
        if not 0 <= least_iou < 1:
            raise ValueError(f"the least IoU must lie in 0..1, below 1, not {least_iou}")
        self.register_buffer("factor", torch.tensor(factor))
        self.register_buffer("least_iou", torch.tensor(least_iou))

    def forward(self, logits: Tensor) -> Tensor:
        """(B, h, w) -> (B, h, w)."""
        flat = logits.flatten(1)
        best = best_expected_iou(flat.sigmoid())  # (B, 1)
        level = (self.factor * best / (1 + best)).clamp(min=_SMALLEST)
        own = torch.log(level / (1 - level))
        nothing = (flat.amax(1, keepdim=True) - _EMPTY).clamp(min=0)
        shift = torch.where(best < self.least_iou, nothing, own)
        return logits - shift.unsqueeze(2)


def best_expected_iou(probability: Tensor) -> Tensor:
    """The largest IoU that a mask of each map may expect: (B, N) -> (B, 1)."""
    whole = probability.mean(1, keepdim=True)
    threshold = _FIRST * probability.amax(1, keepdim=True)
    for _ in range(_ROUNDS):
        inside = (probability > threshold).to(probability.dtype)
        within = (probability * inside).mean(1, keepdim=True)
        outside = whole - within
        union = inside.mean(1, keepdim=True) + outside
        iou = within / union.clamp(min=torch.finfo(probability.dtype).tiny)
        threshold = iou / (1 + iou)
    return iou
