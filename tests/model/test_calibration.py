"""The score of an answer: sure maps score high, doubtful ones low; a map of scores rises."""

from __future__ import annotations

import numpy as np
import pytest

from model.calibration import ScoreMap, agreement


def test_a_map_that_is_sure_agrees_with_its_mask() -> None:
    sure = np.zeros((8, 8))
    sure[2:5, 2:5] = 1
    assert agreement(sure, 0.5) == 1
    assert agreement(np.zeros((8, 8)), 0.5) == 0


def test_doubt_inside_and_outside_both_lower_it() -> None:
    sure = np.zeros((8, 8))
    sure[2:5, 2:5] = 0.9
    inside, outside = sure.copy(), sure.copy()
    inside[2, 2] = 0.55
    outside[6, 6] = 0.45
    assert agreement(sure, 0.5) == pytest.approx(0.9)
    assert agreement(inside, 0.5) < agreement(sure, 0.5)
    assert agreement(outside, 0.5) < agreement(sure, 0.5)


def test_it_is_the_overlap_to_expect() -> None:
    """Pixels that belong to the target with their own probability give this IoU on average."""
    rng = np.random.default_rng(0)
    probability = rng.random((60, 60)) ** 2
    mask = probability > 0.4
    drawn = rng.random((400, 60, 60)) < probability
    overlaps = (drawn & mask).sum((1, 2)) / (drawn | mask).sum((1, 2))
    assert agreement(probability, 0.4) == pytest.approx(overlaps.mean(), abs=0.005)


def test_a_score_map_is_straight_between_its_knots() -> None:
    scores = ScoreMap(((0.2, 0.1), (0.6, 0.5), (0.9, 0.7)))
    assert scores(0.4) == pytest.approx(0.3)
    assert scores(0.05) == 0.1
    assert scores(1.0) == 0.7
    assert scores(0.0) == 0.0, "an empty mask has score 0"
    assert ScoreMap.of(scores.to_json()) == scores


@pytest.mark.parametrize(
    "knots",
    [(), ((0.5, 0.5, 0.5),), ((0.5, 0.2), (0.5, 0.3)), ((0.2, 0.5), (0.4, 0.3)), ((0.2, 1.5),)],
)
def test_what_does_not_rise_is_refused(knots: tuple[tuple[float, ...], ...]) -> None:
    with pytest.raises(ValueError, match="score map"):
        ScoreMap(knots)  # type: ignore[arg-type]
