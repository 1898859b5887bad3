"""What a variant of the graphs costs: its mean IoU beside that of the float32 graphs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from training.data.lmdb_store import PhraseRecord, PhraseStore
from training.metrics import mask_overlap
from training.outcomes import Overlap, PhraseOutcome, phrase_outcomes, report_of
from training.pipeline import in_three_stages
from training.predictors import GraphsPredictor

from .errors import ExportError

MOST_IOU_LOSS = 0.005
"""Half a point of mean IoU; a variant that loses more is refused."""

REFERENCE = "fp32"


class _Answered(NamedTuple):
    """A photo, and each predictor's masks by phrase."""

    image_id: str
    phrases: list[PhraseRecord]
    masks: dict[str, dict[str, NDArray[np.bool_]]]


def measure_costs(
    predictors: Mapping[str, GraphsPredictor],
    store: PhraseStore,
    threshold: float,
    split: str = "val",
    progress: bool = True,
) -> dict[str, dict[str, Any]]:
    """What `precisions` of config.json says of each variant.

    Args:
        predictors: by name, `REFERENCE` among them; of one model, so that they take the same input.
        threshold: probability above which a pixel belongs to a mask.

    Returns:
        by variant mean_iou_fp32, mean_iou, iou_loss, mask_iou (cumulative agreement with the
        masks of float32), phrases and data; the scores are those of `training evaluate`.

    Raises:
        ExportError: if the split has no phrases.
    """
    ids = [image_id for image_id in store.image_ids(split) if store.phrase_count(image_id)]
    if not ids:
        raise ExportError(f"{store.path} has no phrases in split {split!r}; prepare it with some")
    outcomes: dict[str, list[PhraseOutcome]] = {name: [] for name in predictors}
    agreement = {name: np.zeros(2, dtype=np.int64) for name in predictors}
    answered = in_three_stages(
        ids,
        lambda image_id: _load(predictors[REFERENCE], store, image_id),
        lambda loaded: (*loaded[:2], {n: p.answer(loaded[2]) for n, p in predictors.items()}),
        lambda run: _restore(predictors, threshold, *run),
    )
    for photo in tqdm(answered, f"cost on {split}", len(ids), unit="image", disable=not progress):
        source = store.image(photo.image_id).source
        for name, masks in photo.masks.items():
            outcomes[name] += phrase_outcomes(photo.image_id, source, photo.phrases, masks, False)
            for phrase, mask in masks.items():
                agreement[name] += mask_overlap(mask, photo.masks[REFERENCE][phrase])
    scores = {name: report_of(found, split, threshold) for name, found in outcomes.items()}
    plain = scores[REFERENCE].mean_iou
    return {
        name: {
            "mean_iou_fp32": plain,
            "mean_iou": score.mean_iou,
            "iou_loss": plain - score.mean_iou,
            "mask_iou": _share(*agreement[name]),
            "phrases": score.num_phrases,
            "split": split,
            "data": store.metadata()["fingerprint"],
        }
        for name, score in scores.items()
        if name != REFERENCE
    }


def _load(
    predictor: GraphsPredictor, store: PhraseStore, image_id: str
) -> tuple[str, list[PhraseRecord], Any]:
    phrases = list(store.phrases(image_id))
    texts = list(dict.fromkeys(phrase.phrase for phrase in phrases))
    return image_id, phrases, predictor.prepare(store.photo(image_id), texts)


def _restore(
    predictors: Mapping[str, GraphsPredictor],
    threshold: float,
    image_id: str,
    phrases: list[PhraseRecord],
    answers: Mapping[str, Any],
) -> _Answered:
    texts = list(dict.fromkeys(phrase.phrase for phrase in phrases))
    masks = {
        name: {
            text: each > threshold
            for text, each in zip(texts, predictor.restore(answers[name]), strict=True)
        }
        for name, predictor in predictors.items()
    }
    return _Answered(image_id, phrases, masks)


def _share(intersection: int, union: int) -> float:
    """Of masks that are all empty, 1: they agree."""
    return Overlap(int(intersection), int(union)).iou if union else 1.0
