"""Scores of a predictor over all phrases of a split, and whether it listens to their words.

Beside the scores stand three probes, because the overall number hides a model that only reads the
class name: the phrase replaced by its class name, by a blank text, and with "left" and "right"
exchanged (see `evaluation_report`).

Every image is encoded once for all of its phrases. Photos are decoded and letterboxed ahead of the
device, and masks restored and compared behind it, in a few threads (see `pipeline`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.data.lmdb_store import PhraseRecord, PhraseStore, decode_rle
from training.evaluation_report import EvaluationReport
from training.metrics import Mask, ScoreSummary, SegmentationScores, mask_overlap
from training.outcomes import BLANK, PhraseOutcome, phrase_outcomes, report_of
from training.picks import pick_of
from training.pipeline import in_three_stages
from training.predictors import InOnePiece, Predictor, StagedPredictor

SWEEP_THRESHOLDS: tuple[float, ...] = tuple(round(0.05 * step, 2) for step in range(4, 17))
"""0.20, 0.25, ... 0.80."""

MaskSink = Callable[[PhraseRecord, Mask], None]
"""Takes a phrase and its answered mask (H, W) at the photo's size; called in several threads."""

_Maps = Iterable[tuple[str, NDArray[np.float32]]]
"""Each text once with its probability map (H, W), made when it is asked for."""
_Sure = Callable[[float], Sequence[float] | None]
"""Of a threshold, how sure each text's map is of its mask; None where that is not known."""
Scored = TypeVar("Scored")


def evaluate(
    predictor: Predictor,
    store: PhraseStore,
    split: str,
    threshold: float,
    *,
    probes: bool = True,
    image_ids: Sequence[str] | None = None,
    progress: bool = True,
) -> EvaluationReport:
    """Score `predictor` over all phrases of a split; every image is encoded once.

    A mask is where the probability exceeds `threshold`, as in the service, at the image's original
    size. `probes=False` leaves the three probes out and costs about half. `image_ids` restricts to
    some of the split's images. Raises ValueError for a threshold outside (0, 1), for a split
    without phrases, and for photos that do not have the stored size.
    """
    outcomes = score_images(
        predictor, store, split, threshold, probes=probes, image_ids=image_ids, progress=progress
    )
    return report_of(outcomes, split, threshold)


def score_images(
    predictor: Predictor,
    store: PhraseStore,
    split: str,
    threshold: float,
    *,
    probes: bool = True,
    image_ids: Sequence[str] | None = None,
    progress: bool = True,
    mask_sink: MaskSink | None = None,
) -> list[PhraseOutcome]:
    """What `evaluate` makes its report of, in the order of the images and of their phrases.

    For several processes: each scores `image_ids=store.image_ids(split)[rank::processes]`, and
    `report_of` takes their lists joined. Here a selection may be empty or hold no phrases: its
    outcomes are an empty list. `mask_sink` gets every phrase's mask on the way.
    """
    _check_threshold(threshold)
    ids = _image_ids(store, split, image_ids, may_be_none=True)

    def score(photo: _Photo, maps: _Maps, sure: _Sure) -> list[PhraseOutcome]:
        masks = {text: each > threshold for text, each in maps}
        if mask_sink is not None:
            for phrase in photo.phrases:
                mask_sink(phrase, masks[phrase.phrase])
        source = store.image(photo.image_id).source
        found = phrase_outcomes(photo.image_id, source, photo.phrases, masks, probes)
        values = dict(zip(photo.texts, sure(threshold) or (), strict=False))
        objects = store.objects(photo.image_id)
        return [
            replace(
                each,
                agreement=values.get(each.phrase),
                pick=pick_of(phrase, masks[phrase.phrase], objects),
            )
            for each, phrase in zip(found, photo.phrases, strict=True)
        ]

    scored = _score_each(predictor, store, ids, probes, score)
    bar = tqdm(scored, f"evaluate {split}", len(ids), unit="image", disable=not progress)
    return [outcome for outcomes in bar for outcome in outcomes]


def sweep(
    predictor: Predictor,
    store: PhraseStore,
    split: str,
    thresholds: Sequence[float] = SWEEP_THRESHOLDS,
    *,
    image_ids: Sequence[str] | None = None,
    progress: bool = True,
) -> dict[float, ScoreSummary]:
    """Scores over all phrases at several thresholds, from one pass of predictions.

    For choosing the threshold, so a test split (RefCOCO's testA and testB too) is refused with
    ValueError; otherwise as `evaluate`.
    """
    if split.lower().startswith("test"):
        raise ValueError(f"a threshold must not be chosen on {split!r}; sweep a validation split")
    for threshold in thresholds:
        _check_threshold(threshold)
    ids = _image_ids(store, split, image_ids)

    def count(photo: _Photo, maps: _Maps, sure: _Sure) -> list[_Counts]:
        counts = []
        for text, each in maps:
            for phrase in photo.phrases:
                if phrase.phrase == text:
                    target = decode_rle(phrase.rle)
                    counts.append([mask_overlap(each > level, target) for level in thresholds])
        return counts

    counted = _score_each(predictor, store, ids, False, count)
    scores = {threshold: SegmentationScores() for threshold in thresholds}
    for counts in tqdm(counted, f"sweep {split}", len(ids), unit="image", disable=not progress):
        for overlaps in counts:
            for score, overlap in zip(scores.values(), overlaps, strict=True):
                score.add_counts(*overlap)
    return {threshold: score.summary() for threshold, score in scores.items()}


def best_threshold(scores: Mapping[float, ScoreSummary]) -> float:
    """The threshold of a sweep with the highest mean IoU; of equals the one nearest 0.5."""
    if not scores:
        raise ValueError("a sweep over no thresholds has no best one; pass at least one")
    return max(scores, key=lambda threshold: (scores[threshold]["mean_iou"], -abs(threshold - 0.5)))


_Counts = list[tuple[int, int]]
"""Intersection and union of one phrase at each threshold."""


@dataclass(frozen=True)
class _Photo:
    """A photo on its way; `texts` are all that is asked about it, each once."""

    image_id: str
    phrases: Sequence[PhraseRecord]
    texts: Sequence[str]


def _score_each(
    predictor: Predictor,
    store: PhraseStore,
    ids: Sequence[str],
    probes: bool,
    score: Callable[[_Photo, _Maps, _Sure], Scored],
) -> Iterator[Scored]:
    """`score` of every image, in order."""
    stages: StagedPredictor[Any, Any]
    stages = predictor if isinstance(predictor, StagedPredictor) else InOnePiece(predictor)

    def load(image_id: str) -> tuple[_Photo, Any]:
        phrases = store.phrases(image_id)
        photo = _Photo(image_id, phrases, _texts(phrases, probes))
        return photo, stages.prepare(store.photo(image_id), photo.texts)

    def run(loaded: tuple[_Photo, Any]) -> tuple[_Photo, Any]:
        photo, prepared = loaded
        return photo, stages.answer(prepared)

    def finish(answered: tuple[_Photo, Any]) -> Scored:
        photo, answer = answered
        maps = zip(photo.texts, stages.restore(answer), strict=True)
        return score(photo, maps, partial(stages.agreements, answer))

    return in_three_stages(ids, load, run, finish)


def _texts(phrases: Iterable[PhraseRecord], probes: bool) -> list[str]:
    """Every text to be asked about an image, each once."""

    def wanted() -> Iterator[str]:
        for phrase in phrases:
            yield phrase.phrase
            if probes:
                yield phrase.class_name
                yield BLANK
                if phrase.swapped is not None:
                    yield phrase.swapped

    return list(dict.fromkeys(wanted()))


def _image_ids(
    store: PhraseStore, split: str, image_ids: Sequence[str] | None, may_be_none: bool = False
) -> list[str]:
    """The images to score: those with phrases. `may_be_none` allows a selection without any."""
    ids = store.image_ids(split)
    if image_ids is not None:
        unknown = set(image_ids) - set(ids)
        if unknown:
            raise ValueError(f"not in split {split!r}: {', '.join(sorted(unknown)[:5])}")
        ids = list(image_ids)
    ids = [image_id for image_id in ids if store.phrase_count(image_id)]
    if not ids and (image_ids is None or not may_be_none):
        raise ValueError(
            f"{store.path} has no phrases in split {split!r}; prepare it with that split, or "
            f"choose another one ({', '.join(store.splits)})"
        )
    return ids


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold < 1:
        raise ValueError(f"a threshold must lie between 0 and 1, not be {threshold}")
