"""Fitted scores: near the IoU that comes out, judged on images that did not fit them."""

from __future__ import annotations

import numpy as np
import pytest

from training.calibration import Answer, calibrate, fit_score_map


def answers(count: int, seed: int = 0) -> list[Answer]:
    """A model that is too sure of itself: its IoU is the square of its agreement, with noise."""
    rng = np.random.default_rng(seed)
    raw = rng.uniform(0.3, 1.0, count)
    iou = np.clip(raw**2 + rng.normal(0, 0.1, count), 0, 1)
    return [
        Answer(f"image-{index // 3}", float(a), float(b))
        for index, (a, b) in enumerate(zip(raw, iou, strict=True))
    ]


def test_a_fitted_score_is_the_iou_to_expect() -> None:
    found = calibrate(answers(1500))
    assert found is not None
    assert found["num"] == 1500
    assert found["raw_error"] > 0.15
    assert found["error"] < 0.02
    assert found["correlation"] > 0.85
    assert sum(row["num"] for row in found["bins"]) == 1500


def test_it_does_not_depend_on_the_order() -> None:
    made = answers(300)
    assert calibrate(made) == calibrate(made[::-1])


def test_noise_is_not_called_reliable() -> None:
    """A score that knows nothing: the maps of other images say the mean, and nothing more."""
    rng = np.random.default_rng(1)
    made = [Answer(str(k), float(rng.uniform(0.1, 1)), float(rng.random())) for k in range(1000)]
    found = calibrate(made)
    assert found is not None
    assert abs(found["correlation"]) < 0.15
    assert all(abs(row["score"] - 0.5) < 0.2 for row in found["bins"])


def test_few_answers_fit_nothing() -> None:
    assert calibrate(answers(20)) is None


def test_a_map_rises_where_the_answers_do_not() -> None:
    raw = np.linspace(0.1, 0.9, 120)
    falling = 1 - raw
    fitted = fit_score_map(raw, falling)
    values = [fitted(value) for value in raw]
    assert values == sorted(values)
    assert np.mean(values) == pytest.approx(falling.mean())
