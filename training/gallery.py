"""What a bundle answers to a fixed or unpicked list of expressions, for a person's eyes.

The fixed list is asked of photos and drawn layouts that may be shown to anybody, so the picture can
stand in the model card. Nothing of either list is chosen by its answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.bundle import Bundle
from model.calibration import ScoreMap
from training.data.drawn_layouts import one_of_each_kind
from training.data.lmdb_store import PhraseStore, decode_rle
from training.metrics import Mask, iou_of, mask_overlap
from training.predictors import BundlePredictor
from training.reporting.samples import unpicked_samples

PHOTO_EXPRESSIONS: dict[str, tuple[str, ...]] = {
    "astronaut.jpg": ("the person", "hair", "the flag on the left", "the largest flag"),
    "coffee.jpg": ("the cup", "the spoon", "the spoon on the right", "the table"),
    "cat.jpg": ("the cat", "the left ear", "the right ear", "the nose"),
}
"""Of the photos beside the demo page. What they mean is not annotated."""
NOTHING_THERE: dict[str, str] = {
    "astronaut.jpg": "the dog",
    "coffee.jpg": "the bicycle",
    "cat.jpg": "the red car",
}
_SEED, _ROUNDS = 0, 2


@dataclass(frozen=True)
class Question:
    """An expression about a photo uint8 (H, W, 3); truth bool (H, W), None where not known."""

    photo: NDArray[np.uint8]
    expression: str
    truth: Mask | None


@dataclass(frozen=True)
class Answered:
    """score: the expected IoU, 0 of an empty mask, as the service tells it; of a bundle that has
    not measured it, how sure the map is of its mask. iou: None where the truth is not known."""

    question: Question
    mask: Mask
    score: float
    iou: float | None


def fixed_questions(photos: Path) -> list[Question]:
    """The list of the model card: the photos in `photos`, then two drawn layouts of each kind.

    Raises:
        ValueError: a photo is missing.
    """
    return [*_photo_questions(photos), *_drawn_questions()]


def store_questions(store: PhraseStore, split: str, count: int) -> list[Question]:
    """The first `count` phrases of a split by `reporting.samples.SELECTION_RULE`.

    Raises:
        ValueError: the split holds no phrase.
    """
    samples = unpicked_samples(store, split, count)
    return [Question(each.image, each.phrase, each.target) for each in samples]


def answer(bundle: Bundle, questions: Sequence[Question]) -> list[Answered]:
    """Ask the bundle, with its own threshold and score map."""
    predictor = BundlePredictor(bundle)
    score_map = bundle.config.score_map
    return [_answer(predictor, bundle.config.threshold, score_map, each) for each in questions]


def _answer(
    predictor: BundlePredictor, threshold: float, score_map: ScoreMap | None, question: Question
) -> Answered:
    found = predictor.answer(predictor.prepare(question.photo, [question.expression]))
    (probability,) = predictor.restore(found)
    (agreement,) = predictor.agreements(found, threshold)
    mask: Mask = probability > threshold
    truth = question.truth
    sure = score_map(agreement) if score_map else agreement
    return Answered(
        question,
        mask,
        score=sure if mask.any() else 0.0,
        iou=None if truth is None or not truth.any() else iou_of(*mask_overlap(mask, truth)),
    )


def _photo_questions(photos: Path) -> Iterator[Question]:
    for name, expressions in PHOTO_EXPRESSIONS.items():
        if not (photos / name).is_file():
            raise ValueError(f"{photos} holds no {name}; pass the folder of the sample photos")
        with Image.open(photos / name) as file:
            photo = np.asarray(file.convert("RGB"))
        for expression in expressions:
            yield Question(photo, expression, None)
        yield Question(photo, NOTHING_THERE[name], np.zeros(photo.shape[:2], dtype=bool))


def _drawn_questions() -> Iterator[Question]:
    for scene, phrase in one_of_each_kind(_SEED, _ROUNDS):
        yield Question(scene.image, phrase.phrase, decode_rle(phrase.rle))
