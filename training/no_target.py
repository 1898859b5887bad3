"""Phrases that mean nothing in their photo: how often they get an empty mask, or a low score."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypedDict

import numpy as np

from model.calibration import ScoreMap
from training.metrics import SegmentationScores


class Judged(NamedTuple):
    """An answer. has_target: whether the phrase has one. empty: whether the answered mask is.

    intersection, union: of answer and truth, in pixels. agreement: how sure the map was of its mask
    (`model.calibration`), 0 for an empty mask; None where not known.
    """

    has_target: bool
    empty: bool
    intersection: int
    union: int
    agreement: float | None


class NoTargetSummary(TypedDict):
    """Phrases that mean nothing in their photo, as gRefCOCO has them.

    num, num_target: phrases with an empty and with a real target.
    n_acc: share of the former that are answered with an empty mask.
    t_acc: share of the latter that are answered with some mask; None where there are none.
    giou, cum_iou: mean IoU in which an empty answer to an empty target counts 1, and cumulative IoU
        over both sorts of phrases.
    mean_score, mean_score_target: of the answers to either, an empty mask's being 0, with the map
        that the split was found to have; None where it has none.
    auroc: how often the answer to a phrase with a target is surer than the one to a phrase without,
        over all pairs, ties half: 1 tells them apart, 0.5 does not. None where not known.
    """

    num: int
    n_acc: float
    num_target: int
    t_acc: float | None
    giou: float
    cum_iou: float
    mean_score: float | None
    mean_score_target: float | None
    auroc: float | None


def no_target_summary(
    answers: Sequence[Judged], score_map: ScoreMap | None = None
) -> NoTargetSummary | None:
    """As gRefCOCO (CVPR 2023) scores them; None where every phrase has a target."""
    without = [each.empty for each in answers if not each.has_target]
    answered = [not each.empty for each in answers if each.has_target]
    if not without:
        return None
    scores = SegmentationScores(empty_match=1.0)
    for each in answers:
        scores.add_counts(each.intersection, each.union)
    summary = scores.summary()
    return NoTargetSummary(
        num=len(without),
        n_acc=sum(without) / len(without),
        num_target=len(answered),
        t_acc=sum(answered) / len(answered) if answered else None,
        giou=summary["mean_iou"],
        cum_iou=summary["cum_iou"],
        mean_score=_mean_score(answers, False, score_map),
        mean_score_target=_mean_score(answers, True, score_map),
        auroc=_auroc(answers),
    )


def _mean_score(
    answers: Sequence[Judged], has_target: bool, score_map: ScoreMap | None
) -> float | None:
    sure = [each.agreement for each in answers if each.has_target == has_target]
    known = [value for value in sure if value is not None]
    if score_map is None or not known or len(known) < len(sure):
        return None
    return math.fsum(score_map(value) for value in known) / len(known)


def _auroc(answers: Sequence[Judged]) -> float | None:
    """Area under the ROC curve, by counting pairs."""
    sure = [(each.has_target, each.agreement) for each in answers if each.agreement is not None]
    targets = np.array([value for has_target, value in sure if has_target])
    others = np.sort([value for has_target, value in sure if not has_target])
    if len(sure) < len(answers) or not len(targets) or not len(others):
        return None
    below = np.searchsorted(others, targets, "left") + np.searchsorted(others, targets, "right")
    return math.fsum(below / 2) / (len(targets) * len(others))


def no_target_line(summary: NoTargetSummary, what: str, others: str) -> str:
    """A sentence on them. what: "phrases have no target"; others: what the rest of them are."""
    t_acc = "none" if summary["t_acc"] is None else f"{summary['t_acc']:.1%}"
    line = (
        f"{summary['num']} {what}: {summary['n_acc']:.1%} of them were answered with an empty mask "
        f"(N-acc), {t_acc} of the {summary['num_target']} {others} with some mask (T-acc). "
        f"Mean IoU where an empty answer to no target counts 1 (gIoU): {summary['giou']:.3f}."
    )
    score, of_target, auroc = (
        summary[name] for name in ("mean_score", "mean_score_target", "auroc")
    )
    if score is not None and of_target is not None:
        line += f" The mean score is {score:.3f}, for a phrase with a target {of_target:.3f}."
    if auroc is not None:
        line += f" The score tells the two sorts apart with an AUROC of {auroc:.3f}."
    return line
