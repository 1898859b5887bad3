"""Mask scores as PhraseCut's official evaluator computes them, over all phrases and over subsets.

For a phrase with intersection I and union U, counted at the image's original size:

- IoU = I / U, and 0 where I = 0;
- mean IoU over phrases, cumulative IoU = sum I / sum U;
- precision at t for t = 0.5, 0.6, 0.7, 0.8, 0.9: the share of phrases with IoU > t, strictly.

A phrase whose target is empty scores 0 whatever is predicted, as in the official tool (PhraseCut
has none). For sets with no-target phrases (gRefCOCO) `empty_match=1.0` scores an empty prediction
for an empty target as right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

PRECISION_THRESHOLDS: tuple[float, ...] = (0.5, 0.6, 0.7, 0.8, 0.9)

SMALL_AREA = 0.02
"""`s_small`: a target below this share of the image's area."""
LARGE_AREA = 0.20
"""`s_large`: a target above this share; exactly 2 % and 20 % belong to `s_mid`."""

ALL = "all"

Mask = NDArray[np.bool_]


class ScoreSummary(TypedDict):
    """Scores of one subset; with `num` 0 every score is 0."""

    num: int
    mean_iou: float
    cum_iou: float
    precision: dict[str, float]


def mask_overlap(first: Mask, second: Mask) -> tuple[int, int]:
    """Intersection and union, in pixels, of two bool masks (H, W) of one size.

    Raises ValueError for other dtypes or differing sizes.
    """
    if first.dtype != np.bool_ or second.dtype != np.bool_:
        raise ValueError(
            f"masks must be bool, not {first.dtype} and {second.dtype}; threshold them first"
        )
    if first.shape != second.shape:
        raise ValueError(
            f"masks of {first.shape} and {second.shape} cannot be compared; bring the prediction "
            "to the image's original size"
        )
    intersection = int(np.count_nonzero(first & second))
    union = int(np.count_nonzero(first)) + int(np.count_nonzero(second)) - intersection
    return intersection, union


def iou_of(intersection: int, union: int, empty_match: float = 0.0) -> float:
    """I / U; `empty_match` where both masks are empty."""
    return intersection / union if union else empty_match


def size_band(target: Mask) -> str:
    """PhraseCut's subset for a target's size: "s_small", "s_mid" or "s_large"."""
    share = np.count_nonzero(target) / target.size
    if share < SMALL_AREA:
        return "s_small"
    return "s_large" if share > LARGE_AREA else "s_mid"


class SegmentationScores:
    """Collects intersections and unions phrase by phrase, under any number of subset names."""

    def __init__(self, empty_match: float = 0.0) -> None:
        self._empty_match = empty_match
        self._counts: dict[str, list[tuple[int, int]]] = {ALL: []}

    def add(self, prediction: Mask, target: Mask, groups: Iterable[str] = ()) -> float:
        """Score one phrase and return its IoU; see `mask_overlap` for what is refused.

        `groups` names the subsets it belongs to, beside "all".
        """
        return self.add_counts(*mask_overlap(prediction, target), groups)

    def add_counts(self, intersection: int, union: int, groups: Iterable[str] = ()) -> float:
        """As `add`, where intersection and union are already counted."""
        for group in {ALL, *groups}:
            self._counts.setdefault(group, []).append((intersection, union))
        return iou_of(intersection, union, self._empty_match)

    @property
    def groups(self) -> list[str]:
        """Names of the subsets seen so far, sorted, without "all"."""
        return sorted(group for group in self._counts if group != ALL)

    def summary(self, group: str = ALL) -> ScoreSummary:
        """Scores of a subset; one that was never named has `num` 0."""
        counts = np.array(self._counts.get(group, []), dtype=np.int64).reshape(-1, 2)
        num = len(counts)
        if num == 0:
            return empty_summary()
        intersection, union = counts[:, 0], counts[:, 1]
        iou = np.full(num, self._empty_match)
        np.divide(intersection, union, out=iou, where=union > 0)
        total = int(union.sum())
        return ScoreSummary(
            num=num,
            # Exactly rounded, so that the order of the phrases does not matter.
            mean_iou=math.fsum(iou) / num,
            cum_iou=iou_of(int(intersection.sum()), total, self._empty_match),
            precision={
                str(threshold): float((iou > threshold).mean())
                for threshold in PRECISION_THRESHOLDS
            },
        )

    def summaries(self, prefix: str = "") -> dict[str, ScoreSummary]:
        """Scores of the subsets whose names start with `prefix`, keyed by what follows it."""
        return {
            group.removeprefix(prefix): self.summary(group)
            for group in self.groups
            if group.startswith(prefix)
        }


def empty_summary() -> ScoreSummary:
    """The summary of no phrases."""
    precision = {str(threshold): 0.0 for threshold in PRECISION_THRESHOLDS}
    return ScoreSummary(num=0, mean_iou=0.0, cum_iou=0.0, precision=precision)
