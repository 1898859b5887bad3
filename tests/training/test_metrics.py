"""Mask scores against brute force and against PhraseCut's official evaluator."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from training.metrics import SegmentationScores, mask_overlap, size_band

Mask = NDArray[np.bool_]


def brute_force(pairs: list[tuple[Mask, Mask]]) -> dict[str, Any]:
    """Sets of pixels, one phrase after the other."""
    ious, intersections, unions = [], 0, 0
    for prediction, target in pairs:
        first = {tuple(pixel) for pixel in np.argwhere(prediction)}
        second = {tuple(pixel) for pixel in np.argwhere(target)}
        both, either = len(first & second), len(first | second)
        ious.append(both / either if both else 0.0)
        intersections += both
        unions += either
    return {
        "num": len(pairs),
        "mean_iou": sum(ious) / len(ious),
        "cum_iou": intersections / unions if unions else 0.0,
        "precision": {
            str(t): sum(iou > t for iou in ious) / len(ious) for t in (0.5, 0.6, 0.7, 0.8, 0.9)
        },
    }


def assert_same_scores(actual: Any, expected: Any) -> None:
    assert actual["num"] == expected["num"]
    for name in ("mean_iou", "cum_iou"):
        assert actual[name] == pytest.approx(expected[name], abs=1e-12)
    assert actual["precision"] == pytest.approx(expected["precision"], abs=1e-12)


def random_pairs(count: int) -> list[tuple[Mask, Mask]]:
    rng = np.random.default_rng(0)
    pairs = []
    for _ in range(count):
        shape = tuple(rng.integers(1, 9, 2))
        target = rng.random(shape) < rng.random()
        prediction = target ^ (rng.random(shape) < 0.6 * rng.random())
        pairs.append((prediction, target))
    return pairs


def test_equals_brute_force_in_every_group() -> None:
    pairs = random_pairs(120)
    scores = SegmentationScores()
    members: dict[str, list[tuple[Mask, Mask]]] = {"kind/even": [], "kind/odd": [], "third": []}
    for index, (prediction, target) in enumerate(pairs):
        groups = ["kind/odd" if index % 2 else "kind/even"] + ["third"] * (index % 3 == 0)
        scores.add(prediction, target, groups)
        for group in groups:
            members[group].append((prediction, target))
    assert_same_scores(scores.summary(), brute_force(pairs))
    assert scores.groups == sorted(members)
    for group, group_pairs in members.items():
        assert_same_scores(scores.summary(group), brute_force(group_pairs))
    by_kind = scores.summaries("kind/")
    assert sorted(by_kind) == ["even", "odd"]
    assert by_kind["odd"] == scores.summary("kind/odd")


def test_precision_is_strict_at_its_threshold() -> None:
    target = np.ones((1, 10), dtype=np.bool_)
    for pixels, precise in ((5, []), (6, ["0.5"]), (9, ["0.5", "0.6", "0.7", "0.8"])):
        prediction = np.zeros_like(target)
        prediction[0, :pixels] = True
        scores = SegmentationScores()
        assert scores.add(prediction, target) == pixels / 10
        assert [t for t, share in scores.summary()["precision"].items() if share] == precise


def test_empty_masks() -> None:
    empty, full = np.zeros((4, 4), dtype=np.bool_), np.ones((4, 4), dtype=np.bool_)
    official = SegmentationScores()
    assert official.add(empty, empty) == official.add(empty, full) == official.add(full, empty) == 0
    assert official.summary()["mean_iou"] == 0
    no_target = SegmentationScores(empty_match=1.0)
    assert no_target.add(empty, empty) == 1
    assert no_target.add(full, empty) == 0
    assert no_target.summary()["mean_iou"] == 0.5


def test_a_group_without_phrases_scores_nothing() -> None:
    summary = SegmentationScores().summary("never seen")
    assert summary["num"] == 0
    assert summary["mean_iou"] == summary["cum_iou"] == 0
    assert set(summary["precision"].values()) == {0.0}


@pytest.mark.parametrize(
    ("pixels", "band"),
    [(1, "s_small"), (2, "s_mid"), (20, "s_mid"), (21, "s_large"), (100, "s_large")],
)
def test_size_bands_include_their_edges_in_the_middle(pixels: int, band: str) -> None:
    target = np.zeros(100, dtype=np.bool_)
    target[:pixels] = True
    assert size_band(target.reshape(10, 10)) == band


def test_refuses_what_cannot_be_compared() -> None:
    mask = np.ones((3, 4), dtype=np.bool_)
    with pytest.raises(ValueError, match="original size"):
        mask_overlap(mask, mask.T)
    with pytest.raises(ValueError, match="threshold"):
        mask_overlap(mask, mask.astype(np.float32))


@pytest.mark.parametrize("split", ["val", "test"])
def test_equals_the_official_evaluator(shared_dir: Path, split: str) -> None:
    folder = shared_dir / "data" / "phrasecut"
    if not (folder / "official_scores.json").is_file():
        pytest.skip(f"{folder} with PhraseCut's official scores is missing")
    official = json.loads((folder / "official_scores.json").read_text())[split]
    tasks = json.loads((folder / "official_per_task.json").read_text())
    scores = SegmentationScores()
    for task_id, task in tasks.items():
        if task["split"] != split:
            continue
        target = read_mask(folder / "gt" / f"{task_id}.png")
        prediction = read_mask(folder / "predictions" / split / f"{task_id}.png")
        subsets = task["subsets"]
        iou = scores.add(prediction, target, subsets)
        assert iou == pytest.approx(task["iou"], abs=1e-12)
        assert size_band(target) in subsets
    assert scores.summary()["num"] == official["all"]["num"] > 0
    for subset, expected in official.items():
        assert_same_scores(scores.summary(subset), expected)


def read_mask(path: Path) -> Mask:
    return np.asarray(Image.open(path)) > 0
