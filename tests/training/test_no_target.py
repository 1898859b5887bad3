"""Phrases that mean nothing: N-acc, T-acc, scores, and classes that are certainly absent."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from model.calibration import ScoreMap
from training.absent_classes import absent_classes, absent_outcomes
from training.data.lmdb_store import (
    ImageRecord,
    PhraseRecord,
    PhraseStore,
    PhraseStoreWriter,
    encode_rle,
)
from training.evaluate import score_images
from training.no_target import Judged, no_target_line, no_target_summary
from training.outcomes import report_of

_THINGS = {"a": ("dog", "cup"), "b": ("cup",), "c": ("truck",), "d": ("truck", "zebra")}
_SOURCES = {"a": "coco", "b": "coco", "c": "coco", "d": "coco-partial"}


def a_phrase(class_name: str, rows: slice) -> PhraseRecord:
    mask = np.zeros((20, 30), dtype=bool)
    mask[rows] = True
    return PhraseRecord(
        f"the {class_name}", "class", class_name, encode_rle(mask), False, None, None, 0
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PhraseStore:
    """Three completely annotated photos and one that is not."""
    path = tmp_path_factory.mktemp("absent") / "store.lmdb"
    buffer = io.BytesIO()
    Image.new("RGB", (30, 20)).save(buffer, "JPEG")
    batch = []
    for image_id, names in _THINGS.items():
        phrases = [a_phrase(name, slice(5 * k, 5 * k + 5)) for k, name in enumerate(names)]
        record = ImageRecord(image_id, "val", _SOURCES[image_id], 20, 30, len(phrases))
        batch.append((record, buffer.getvalue(), phrases))
    with PhraseStoreWriter(path, {"maker": "test"}) as writer:
        writer.add(batch, {})
        writer.finish(_THINGS, {})
    return PhraseStore(path)


class Answers:
    """Answers every phrase with the photo's upper half, or with nothing."""

    def __init__(self, *, nothing: bool = False) -> None:
        self.nothing, self.asked = nothing, list[str]()

    def predict(
        self, image: NDArray[np.uint8], phrases: Sequence[str]
    ) -> list[NDArray[np.float32]]:
        self.asked += phrases
        probability = np.zeros(image.shape[:2], dtype=np.float32)
        probability[:10] = 0 if self.nothing else 1
        return [probability] * len(phrases)


def test_only_what_is_certainly_absent_is_asked(store: PhraseStore) -> None:
    found = absent_classes(store, "val")
    assert {image_id: set(names) for image_id, names in found.items()} == {
        "a": {"truck"},
        "b": {"dog", "truck"},
        "c": {"dog", "cup"},
    }  # not "zebra", which only a photo has that is not completely annotated
    assert absent_classes(store, "val") == found
    predictor = Answers()
    absent_outcomes(predictor, store, "val", 0.5)
    assert sorted(predictor.asked) == ["the cup", *["the dog"] * 2, *["the truck"] * 2]


@pytest.mark.parametrize("nothing", [True, False])
def test_absent_classes_in_a_report(store: PhraseStore, nothing: bool) -> None:
    predictor = Answers(nothing=nothing)
    outcomes = score_images(predictor, store, "val", 0.5, progress=False)
    absent = absent_outcomes(predictor, store, "val", 0.5)
    report = report_of(outcomes, "val", 0.5, absent)
    plain = report_of(outcomes, "val", 0.5)
    assert plain.absent is None
    assert report.overall == plain.overall  # made phrases are in no other number
    assert report.num_phrases == len(outcomes)
    assert report.absent is not None
    assert (report.absent["num"], report.absent["num_target"]) == (5, 4)
    assert report.absent["n_acc"] == float(nothing)
    assert report.absent["t_acc"] == float(not nothing)
    assert "5 further phrases name a class that is not in its photo" in report.to_markdown()


def judged(*rows: tuple[bool, float | None]) -> list[Judged]:
    return [Judged(target, value == 0, 0, 7, value) for target, value in rows]


def test_the_score_tells_targets_from_nothing() -> None:
    rows = judged((True, 0.9), (True, 0.5), (False, 0.5), (False, 0.0))
    summary = no_target_summary(rows, ScoreMap(((0.0, 0.0), (1.0, 0.5))))
    assert summary is not None
    assert summary["auroc"] == pytest.approx((2 + 1.5) / 4)
    assert summary["mean_score"] == pytest.approx((0.25 + 0) / 2)
    assert summary["mean_score_target"] == pytest.approx((0.45 + 0.25) / 2)
    assert "AUROC of 0.875" in no_target_line(summary, "phrases", "others")


@pytest.mark.parametrize("rows", [((True, None), (False, None)), ((False, 0.3),)])
def test_no_score_no_comparison(rows: Any) -> None:
    summary = no_target_summary(judged(*rows))
    assert summary is not None
    assert summary["auroc"] is None
    assert "AUROC" not in no_target_line(summary, "phrases", "others")
    assert no_target_summary(judged((True, 0.3))) is None


def test_a_split_without_complete_photos_is_not_asked(tiny_store: Path) -> None:
    assert absent_outcomes(Answers(), PhraseStore(tiny_store), "val", 0.5) == []
