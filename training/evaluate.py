"""Scores of a predictor over all phrases of a split, and whether it listens to their words.

Beside the scores stand three probes, because the overall number hides a model that only reads the
class name: the phrase replaced by its class name, by a blank text, and with "left" and "right"
exchanged (see `evaluation_report`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from tqdm import tqdm

from training.data.lmdb_store import PhraseRecord, PhraseStore, decode_rle
from training.evaluation_report import EvaluationReport
from training.metrics import ScoreSummary, SegmentationScores
from training.outcomes import BLANK, PhraseOutcome, phrase_outcomes, report_of
from training.predictors import Predictor

SWEEP_THRESHOLDS: tuple[float, ...] = tuple(round(0.05 * step, 2) for step in range(4, 17))
"""0.20, 0.25, ... 0.80."""


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
) -> list[PhraseOutcome]:
    """What `evaluate` makes its report of, in the order of the images and of their phrases.

    For several processes: each scores `image_ids=store.image_ids(split)[rank::processes]`, and
    `report_of` takes their lists joined. Here a selection may be empty or hold no phrases: its
    outcomes are an empty list.
    """
    _check_threshold(threshold)
    ids = _image_ids(store, split, image_ids)
    outcomes: list[PhraseOutcome] = []
    for image_id in tqdm(ids, desc=f"evaluate {split}", unit="image", disable=not progress):
        phrases = store.phrases(image_id)
        texts = _texts(phrases, probes)
        maps = predictor.predict(store.photo(image_id), texts)
        masks = {text: each > threshold for text, each in zip(texts, maps, strict=True)}
        source = store.image(image_id).source
        outcomes += phrase_outcomes(image_id, source, phrases, masks, probes)
    return outcomes


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

    For choosing the threshold, so a test split is refused with ValueError; otherwise as
    `evaluate`.
    """
    if split.startswith("test"):
        raise ValueError(f"a threshold must not be chosen on {split!r}; sweep a validation split")
    for threshold in thresholds:
        _check_threshold(threshold)
    scores = {threshold: SegmentationScores() for threshold in thresholds}
    ids = _image_ids(store, split, image_ids)
    for image_id in tqdm(ids, desc=f"sweep {split}", unit="image", disable=not progress):
        phrases = store.phrases(image_id)
        texts = _texts(phrases, probes=False)
        maps = predictor.predict(store.photo(image_id), texts)
        probability = dict(zip(texts, maps, strict=True))
        for phrase in phrases:
            target = decode_rle(phrase.rle)
            for threshold, score in scores.items():
                score.add(probability[phrase.phrase] > threshold, target)
    return {threshold: score.summary() for threshold, score in scores.items()}


def best_threshold(scores: Mapping[float, ScoreSummary]) -> float:
    """The threshold of a sweep with the highest mean IoU; of equals the one nearest 0.5."""
    if not scores:
        raise ValueError("a sweep over no thresholds has no best one; pass at least one")
    return max(scores, key=lambda threshold: (scores[threshold]["mean_iou"], -abs(threshold - 0.5)))


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


def _image_ids(store: PhraseStore, split: str, image_ids: Sequence[str] | None) -> list[str]:
    ids = store.image_ids(split)
    if image_ids is not None:
        unknown = set(image_ids) - set(ids)
        if unknown:
            raise ValueError(f"not in split {split!r}: {', '.join(sorted(unknown)[:5])}")
        ids = list(image_ids)
    ids = [image_id for image_id in ids if store.phrase_count(image_id)]
    if not ids and image_ids is None:
        raise ValueError(
            f"{store.path} has no phrases in split {split!r}; prepare it with that split, or "
            "choose another one"
        )
    return ids


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold < 1:
        raise ValueError(f"a threshold must lie between 0 and 1, not be {threshold}")
