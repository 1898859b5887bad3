"""Fitting and judging the score of an answer: is it the IoU that comes out?

The map from a mask's agreement to its expected IoU is fitted on the phrases of a split; how good
it is, is told of maps fitted on the other images (five folds), so that no phrase judges a map that
it helped to fit.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from model.calibration import ScoreMap

_FOLDS = 5
_BINS = 10
_STEPS = 12
"""Groups of equal numbers of answers that a fitted map goes through."""
_FEWEST = 50

Values = NDArray[np.float64]


class Answer(NamedTuple):
    """agreement: of the answered map with its mask, above 0. iou: of the mask with the truth."""

    image_id: str
    agreement: float
    iou: float


class ReliabilityBin(TypedDict):
    """Answers whose score lies in one tenth of 0..1: their number, mean score, mean IoU."""

    num: int
    score: float
    iou: float


class Calibration(TypedDict):
    """knots: of `ScoreMap`, fitted on all answers. num: answers that are not empty.

    error, raw_error: mean distance of score and IoU over the bins, weighted by their numbers, of
    the score and of the agreement itself. correlation: of score and IoU over the answers. bins: by
    score, those without an answer left out. All but raw_error from maps fitted on other images.
    """

    knots: list[list[float]]
    num: int
    error: float
    raw_error: float
    correlation: float
    bins: list[ReliabilityBin]


def calibrate(answers: Sequence[Answer]) -> Calibration | None:
    """Fit and judge; None for too few answers to do either."""
    if len(answers) < _FEWEST:
        return None
    # By image, so that the order of the answers does not matter.
    answers = sorted(answers)
    raw = np.array([each.agreement for each in answers])
    iou = np.array([each.iou for each in answers])
    fold = np.array([_fold(each.image_id) for each in answers])
    score = np.empty_like(raw)
    for number in range(_FOLDS):
        held_out = fold == number
        if held_out.any() and not held_out.all():
            fitted = fit_score_map(raw[~held_out], iou[~held_out])
            score[held_out] = [fitted(value) for value in raw[held_out]]
        else:
            score[held_out] = raw[held_out]
    bins = _bins(score, iou)
    return Calibration(
        knots=fit_score_map(raw, iou).to_json(),
        num=len(answers),
        error=_error(bins),
        raw_error=_error(_bins(raw, iou)),
        correlation=_correlation(score, iou),
        bins=bins,
    )


def fit_score_map(agreement: Values, iou: Values) -> ScoreMap:
    """The rising map that comes nearest to the IoUs (pool adjacent violators), (K,) each, K > 0.

    Through the means of groups of equal numbers, so that a handful of answers bends nothing.
    """
    order = np.argsort(agreement, kind="stable")
    groups = np.array_split(order, min(_STEPS, len(order)))
    blocks: list[tuple[float, float, int]] = []  # sum of agreement, sum of IoU, number
    for group in groups:
        blocks.append((float(agreement[group].sum()), float(iou[group].sum()), len(group)))
        while len(blocks) > 1 and _mean(blocks[-2]) >= _mean(blocks[-1]):
            last, before = blocks.pop(), blocks.pop()
            blocks.append((before[0] + last[0], before[1] + last[1], before[2] + last[2]))
    knots: list[tuple[float, float]] = []
    for raw, total, number in blocks:
        knot = (min(1.0, raw / number), min(1.0, total / number))
        if not knots or knot[0] > knots[-1][0]:
            knots.append(knot)
    return ScoreMap(tuple(knots))


def _mean(block: tuple[float, float, int]) -> float:
    return block[1] / block[2]


def _fold(image_id: str) -> int:
    return hashlib.sha256(image_id.encode()).digest()[0] % _FOLDS


def _bins(score: Values, iou: Values) -> list[ReliabilityBin]:
    place = np.minimum((score * _BINS).astype(int), _BINS - 1)
    return [
        ReliabilityBin(
            num=int(chosen.sum()),
            score=math.fsum(score[chosen]) / int(chosen.sum()),
            iou=math.fsum(iou[chosen]) / int(chosen.sum()),
        )
        for chosen in (place == number for number in range(_BINS))
        if chosen.any()
    ]


def _error(bins: Sequence[ReliabilityBin]) -> float:
    total = sum(each["num"] for each in bins)
    return math.fsum(each["num"] * abs(each["score"] - each["iou"]) for each in bins) / total


def _correlation(score: Values, iou: Values) -> float:
    if score.std() == 0 or iou.std() == 0:
        return 0.0
    return float(np.corrcoef(score, iou)[0, 1])
