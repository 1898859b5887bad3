"""The score of an answer: the IoU that may be expected of its mask. numpy only.

h, w = the sides of the network's output, S/4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def agreement(probability: NDArray[np.floating], threshold: float) -> float:
    """How sure a probability map is of its own mask, 0 to 1; 0 for an empty mask.

    The IoU of the map with its mask, both taken as soft sets: what the mask would score if every
    pixel belonged to the target with its own probability and independently. It falls with doubtful
    pixels inside the mask and with doubtful ones left outside.

    Args:
        probability: (h, w), the network's output for one expression, not resized.
        threshold: above which a pixel belongs to the mask.
    """
    inside = probability > threshold
    if not inside.any():
        return 0.0
    whole = float(probability.sum(dtype=np.float64))
    within = float(probability[inside].sum(dtype=np.float64))
    return within / (float(np.count_nonzero(inside)) + whole - within)


@dataclass(frozen=True)
class ScoreMap:
    """From the agreement of a map with its mask to the expected IoU, in straight pieces.

    knots: (agreement, expected IoU), both rising; what lies outside takes the nearest end. An empty
    mask has agreement 0 and score 0 whatever the knots say.
    """

    knots: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        values = np.array(self.knots, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] != 2 or not len(values):
            raise ValueError("a score map needs knots (agreement, expected IoU); evaluate fits one")
        if not (np.diff(values[:, 0]) > 0).all() or not (np.diff(values[:, 1]) >= 0).all():
            raise ValueError("the knots of a score map must rise")
        if values.min() < 0 or values.max() > 1:
            raise ValueError("the knots of a score map must lie in 0..1")

    def __call__(self, agreement: float) -> float:
        """The expected IoU, 0 to 1."""
        if agreement <= 0:
            return 0.0
        raw, expected = np.array(self.knots, dtype=np.float64).T
        return float(np.interp(agreement, raw, expected))

    @classmethod
    def of(cls, knots: Sequence[Sequence[float]]) -> ScoreMap:
        """From plain JSON, as `to_json` makes it. Raises ValueError for anything else."""
        return cls(tuple((float(raw), float(expected)) for raw, expected in knots))

    def to_json(self) -> list[list[float]]:
        return [list(knot) for knot in self.knots]
