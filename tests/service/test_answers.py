"""From logits to one entry of the answer: threshold, score, area, box."""

from __future__ import annotations

import numpy as np
import pytest

from model.calibration import ScoreMap, agreement
from model.preprocess import letterbox_geometry, restore_probability, sigmoid
from service.answers import Finding, describe, restore
from service.schemas import SegmentOptions

GEOMETRY = letterbox_geometry(64, 64, 64)


def finding(logits: np.ndarray) -> Finding:
    return Finding("the dog", False, logits.astype(np.float32))


def test_pixel_at_the_threshold_is_outside() -> None:
    found = restore(finding(np.zeros((16, 16))), GEOMETRY, threshold=0.5)
    probability = restore_probability(sigmoid(found.finding.logits), GEOMETRY)
    np.testing.assert_allclose(probability, 0.5, atol=1e-6)
    exact = float(probability.max())
    assert restore(found.finding, GEOMETRY, threshold=exact).mask.area == 0
    below = float(np.nextafter(np.float32(exact), np.float32(0)))
    assert restore(found.finding, GEOMETRY, threshold=below).mask.area > 0


def test_score_of_a_model_that_was_not_measured_is_the_mean_probability_inside() -> None:
    logits = np.full((16, 16), -20.0)
    logits[4:12, 4:12] = 1.0
    found = restore(finding(logits), GEOMETRY, threshold=0.5)
    result = describe(found, SegmentOptions(format="none"))
    probability = restore_probability(sigmoid(found.finding.logits), GEOMETRY)
    inside = probability > 0.5
    assert result.score == pytest.approx(probability[inside].mean(), abs=1e-6)
    assert result.area == inside.sum() > 0
    np.testing.assert_array_equal(found.mask.full(), inside)
    assert result.mask is None


def test_score_is_the_expected_iou_where_that_was_measured() -> None:
    logits = np.full((16, 16), -20.0)
    logits[4:12, 4:12] = 1.0
    sure = agreement(sigmoid(logits), 0.5)
    assert 0.6 < sure < 0.8
    measured = ScoreMap(((0.0, 0.0), (sure, 0.25), (1.0, 0.9)))
    found = restore(finding(logits), GEOMETRY, threshold=0.5, score_map=measured)
    assert found.score == pytest.approx(0.25, abs=1e-5)
    nothing = restore(finding(np.full((16, 16), -20.0)), GEOMETRY, 0.5, measured)
    assert nothing.score == 0.0


def test_extreme_logits_are_certain_and_finite() -> None:
    found = restore(finding(np.full((16, 16), 1e4)), GEOMETRY, threshold=0.5)
    assert describe(found, SegmentOptions()).score == 1.0
    nothing = restore(finding(np.full((16, 16), -1e4)), GEOMETRY, threshold=0.5)
    assert describe(nothing, SegmentOptions()).score == 0.0
    assert describe(nothing, SegmentOptions()).bbox is None
