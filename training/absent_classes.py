"""Photos asked for classes that are certainly not in them.

The phrase stores of photos hold no phrase without a target. Where a source annotates every class
of its vocabulary, such a phrase can be made: it names a class that other photos of the split have
and this one has not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from training.data.absent_phrases import absent_phrase, present_classes
from training.data.cutouts import COMPLETE_SOURCES
from training.data.lmdb_store import PhraseStore
from training.data.phrase_templates import noun_of
from training.outcomes import PhraseOutcome, phrase_outcomes
from training.predictors import InOnePiece, Predictor, StagedPredictor

_PER_PHOTO = 5


def absent_classes(store: PhraseStore, split: str) -> dict[str, list[str]]:
    """By image id some classes that are not in the photo; no entry where none is certain.

    Which ones, follows from the image's id alone, and from the classes that the split has.
    """
    ids = store.image_ids(split, COMPLETE_SOURCES)
    present = {image_id: present_classes(store, image_id) for image_id in ids}
    every = {name for names in present.values() for name in names}
    chosen = {
        image_id: sorted(every - known, key=lambda name: _rank(image_id, name))[:_PER_PHOTO]
        for image_id, known in present.items()
    }
    return {image_id: names for image_id, names in chosen.items() if names}


def absent_outcomes(
    predictor: Predictor, store: PhraseStore, split: str, threshold: float
) -> list[PhraseOutcome]:
    """What the predictor answers to them; [] where the split has no photo that allows it."""
    stages: StagedPredictor[Any, Any]
    stages = predictor if isinstance(predictor, StagedPredictor) else InOnePiece(predictor)
    return [
        outcome
        for image_id, names in absent_classes(store, split).items()
        for outcome in _ask(stages, store, image_id, names, threshold)
    ]


def _ask(
    stages: StagedPredictor[Any, Any],
    store: PhraseStore,
    image_id: str,
    names: Sequence[str],
    threshold: float,
) -> Iterator[PhraseOutcome]:
    photo, source = store.photo(image_id), store.image(image_id).source
    height, width = photo.shape[:2]
    texts = [f"the {noun_of(name).singular}" for name in names]
    answer = stages.answer(stages.prepare(photo, texts))
    maps = zip(texts, stages.restore(answer), strict=True)
    masks = {text: each > threshold for text, each in maps}
    phrases = [
        absent_phrase(text, name, height, width) for text, name in zip(texts, names, strict=True)
    ]
    sure = dict(zip(texts, stages.agreements(answer, threshold) or (), strict=False))
    for each in phrase_outcomes(image_id, source, phrases, masks, probes=False):
        yield replace(each, agreement=sure.get(each.phrase))


def _rank(image_id: str, name: str) -> str:
    return hashlib.sha256(f"{image_id}/{name}".encode()).hexdigest()
