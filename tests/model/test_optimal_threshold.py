"""Each answer's own threshold: the one at which its mask may expect the most IoU."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from model.optimal_threshold import OptimalThreshold, best_expected_iou

SIDE = 40
HEIGHTS = (0.15, 0.4, 0.7, 0.97)


def blobs(heights: tuple[float, ...] = HEIGHTS) -> Tensor:
    """Logits (B, SIDE, SIDE) of round maps whose probability falls from its height to nothing."""
    at = (torch.arange(SIDE) - SIDE / 3) / SIDE
    distance = (at.view(-1, 1).square() + at.view(1, -1).square()) / 0.03
    return torch.logit(torch.tensor(heights).view(-1, 1, 1) * (-distance).exp() + 1e-4)


def expected_iou(probability: Tensor, threshold: float) -> float:
    inside = probability > threshold
    within = probability[inside].sum()
    return float(within / (inside.sum() + probability.sum() - within))


def test_no_threshold_promises_more() -> None:
    """Against all thresholds one by one."""
    for logits in blobs():
        probability = logits.sigmoid()
        tried = [expected_iou(probability, t) for t in torch.linspace(0.005, 0.99, 400).tolist()]
        best = float(best_expected_iou(probability.view(1, -1)))
        assert best == pytest.approx(max(tried), abs=2e-3)
        assert expected_iou(probability, best / (1 + best)) == pytest.approx(best, abs=2e-3)


def test_the_best_mask_is_the_best_of_calibrated_maps() -> None:
    """Truths drawn as the map says: no other threshold has a larger mean IoU."""
    generator = torch.Generator().manual_seed(0)
    for logits in blobs((0.4, 0.97)):
        probability = logits.sigmoid()
        best = float(best_expected_iou(probability.view(1, -1)))
        truths = torch.rand(300, SIDE, SIDE, generator=generator) < probability

        def mean_iou(threshold: float, p: Tensor = probability, t: Tensor = truths) -> float:
            inside = p > threshold
            return float(((t & inside).sum((1, 2)) / (t | inside).sum((1, 2))).mean())

        own = mean_iou(best / (1 + best))
        assert own >= max(mean_iou(0.1 * step) for step in range(1, 10)) - 2e-3


@pytest.mark.parametrize("factor", [0.7, 1.0, 1.5])
def test_a_half_is_the_own_threshold_of_each(factor: float) -> None:
    logits = blobs()
    moved = OptimalThreshold(factor)(logits)
    best = best_expected_iou(logits.flatten(1).sigmoid())
    threshold = (factor * best / (1 + best)).view(-1, 1, 1)
    assert torch.equal(moved > 0, logits.sigmoid() > threshold)
    # Its logits move together, and no answer looks at another.
    assert (moved - logits).flatten(1).std(1).max() < 1e-5
    for alone, together in zip(logits.split(1), moved, strict=True):
        torch.testing.assert_close(OptimalThreshold(factor)(alone)[0], together)


def test_an_answer_that_promises_too_little_is_empty_and_can_still_be_asked_for() -> None:
    logits = blobs()
    least = 0.3
    promised = best_expected_iou(logits.flatten(1).sigmoid())[:, 0]
    assert (promised < least).any() and (promised > least).any()
    moved = OptimalThreshold(1.0, least)(logits)
    assert torch.equal((moved > 0).flatten(1).any(1), promised >= least)
    for before, after, kept in zip(logits, moved, promised >= least, strict=True):
        assert int(after.argmax()) == int(before.argmax())
        assert kept or after.max() == pytest.approx(min(float(before.max()), -1.0))


@pytest.mark.parametrize("value", [-200.0, -20.0, 2.0, 200.0])
def test_any_map_gives_finite_logits(value: float) -> None:
    moved = OptimalThreshold(1.5, 0.2)(torch.full((2, 8, 8), value))
    assert torch.isfinite(moved).all()
    assert bool((moved > 0).all()) == (value >= 0)


@pytest.mark.parametrize(
    ("factor", "least"), [(0.0, 0), (2.0, 0), (float("nan"), 0), (1, -0.1), (1, 1)]
)
def test_values_that_make_no_threshold_are_refused(factor: float, least: float) -> None:
    with pytest.raises(ValueError, match="must lie in"):
        OptimalThreshold(factor, least)


def test_exported_answers_as_eager(tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("graph") / "optimal_threshold.onnx"
    module, batch = OptimalThreshold(1.5, 0.3).eval(), torch.export.Dim("batch")
    torch.onnx.export(
        module, (blobs(),), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False
    )
    session = onnxruntime.InferenceSession(path)
    for logits in (blobs(), blobs((0.9,)), torch.full((3, SIDE, SIDE), -200.0)):
        (answer,) = session.run(None, {session.get_inputs()[0].name: logits.numpy()})
        np.testing.assert_allclose(answer, module(logits).numpy(), atol=1e-4)
