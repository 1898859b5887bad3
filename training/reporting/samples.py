"""Phrases for the qualitative figures, taken by rule and not by eye, and what runs answer."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.lmdb_store import PhraseStore, decode_rle
from training.metrics import Mask, iou_of, mask_overlap

SELECTION_RULE = (
    "Phrases are taken by rule, not picked: all phrases of the split in the order of the SHA-256 "
    "of image id and place, at most one an image, the first so many."
)


@dataclass(frozen=True)
class Sample:
    """A phrase on its photo. image uint8 (H, W, 3), target bool (H, W)."""

    image_id: str
    phrase: str
    image: NDArray[np.uint8]
    target: Mask


@dataclass(frozen=True)
class Answer:
    """A mask bool (H, W) and its IoU with the target."""

    mask: Mask
    iou: float


def unpicked_samples(store: PhraseStore, split: str, count: int) -> list[Sample]:
    """The first `count` samples of a split under `SELECTION_RULE`; fewer where it has fewer.

    Raises:
        ValueError: the split holds no phrase.
    """
    places = sorted(
        (_rank(image_id, place), image_id, place)
        for image_id in store.image_ids(split)
        for place in range(store.phrase_count(image_id))
    )
    if not places:
        raise ValueError(
            f"{store.path} has no phrases in split {split!r}; it has "
            f"{', '.join(store.splits)}: pass --data a store with the split that was scored"
        )
    chosen: dict[str, int] = {}
    for _, image_id, place in places:
        if len(chosen) < count:
            chosen.setdefault(image_id, place)
    return [_sample(store, image_id, place) for image_id, place in chosen.items()]


def answers(checkpoint: Path, samples: Sequence[Sample], threshold: float) -> list[Answer]:
    """What the weights in `checkpoint` answer to each sample, at the photos' own size.

    Raises:
        ValueError: the file holds no usable weights.
    """
    from model.checkpoint import load
    from model.tokenizer import clip_tokenizer
    from training.distributed import pick_device
    from training.predictors import TorchPredictor

    device = pick_device()
    predictor = TorchPredictor(load(checkpoint).to(device), clip_tokenizer(), device)
    found = []
    for sample in samples:
        (probability,) = predictor.predict(sample.image, [sample.phrase])
        mask = probability > threshold
        found.append(Answer(mask, iou_of(*mask_overlap(mask, sample.target))))
    return found


def _rank(image_id: str, place: int) -> str:
    return hashlib.sha256(f"{image_id}/{place}".encode()).hexdigest()


def _sample(store: PhraseStore, image_id: str, place: int) -> Sample:
    record = store.phrases(image_id)[place]
    return Sample(image_id, record.phrase, store.photo(image_id), decode_rle(record.rle))
