"""Training batches: a pure function of the seed and the step.

I = images of a batch, N = expressions of a batch, S = input side, L = word length. A batch depends
on nothing but (seed, step), so a resumed run, or one with other workers, sees the same data.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from model.preprocess import letterbox_image, letterbox_mask
from model.tokenizer import Tokenizer

from ..config import DataSection
from .lmdb_store import PhraseRecord, PhraseStore, decode_rle
from .phrase_templates import swap_left_right
from .transforms import TRUE_UNDER_CROP, jitter, random_crop, survives_crop


class Batch(NamedTuple):
    """What one step learns from.

    images: uint8 (I, S, S, 3). tokens: int64 (N, L). targets: float32 (N, S/4, S/4) of 0 and 1.
    image_index: int64 (N,), the image that each expression is about.
    """

    images: Tensor
    tokens: Tensor
    targets: Tensor
    image_index: Tensor


@dataclass(frozen=True)
class _Example:
    image: NDArray[np.uint8]
    phrases: list[str]
    targets: list[NDArray[np.bool_]]


class TrainingBatches(Dataset[Batch]):
    """Batch `step` of a run, for every step; images in a new order each pass over the split.

    Raises:
        ValueError: if the split holds no image with an expression.
    """

    def __init__(
        self,
        store: PhraseStore,
        tokenizer: Tokenizer,
        data: DataSection,
        *,
        image_size: int,
        word_length: int,
        steps: int,
        seed: int,
    ) -> None:
        self.store, self.tokenizer, self.data = store, tokenizer, data
        self.image_size, self.word_length = image_size, word_length
        self.steps, self.seed = steps, seed
        ids = store.image_ids(data.train_split)
        self.image_ids = [image_id for image_id in ids if store.phrase_count(image_id)]
        if not self.image_ids:
            raise ValueError(
                f"the store has no expressions in its split {data.train_split!r}; "
                "set data.train_split to one that `python -m training prepare` reported"
            )

    def __len__(self) -> int:
        return self.steps

    def size_at(self, step: int) -> int:
        """Input side in pixels at `step`, by `data.sizes`."""
        share = step / self.steps
        sizes = [size for start, size in self.data.sizes if start <= share]
        return sizes[-1] if sizes else self.image_size

    def __getitem__(self, step: int) -> Batch:
        size, count = self.size_at(step), self.data.images_per_batch
        images, phrases, targets, index = [], [], [], []
        for place in range(count):
            turn = step * count + place
            epoch, position = divmod(turn, len(self.image_ids))
            image_id = self.image_ids[_order(len(self.image_ids), self.seed, epoch)[position]]
            rng = np.random.default_rng((self.seed, turn))
            example = self._example(image_id, rng)
            square, geometry = letterbox_image(example.image, size)
            images.append(square)
            phrases += example.phrases
            targets += [letterbox_mask(mask, geometry, size // 4) for mask in example.targets]
            index += [place] * len(example.phrases)
        tokens = self.tokenizer.encode(phrases, self.word_length).tokens
        return Batch(
            torch.from_numpy(np.stack(images)),
            torch.from_numpy(tokens),
            torch.from_numpy(np.stack(targets)).float(),
            torch.tensor(index),
        )

    def _example(self, image_id: str, rng: np.random.Generator) -> _Example:
        image = self.store.photo(image_id)
        records = self.store.phrases(image_id)
        augment = self.data.augment
        example = None
        if rng.random() < augment.crop:
            example = self._cropped(image, records, rng)
        if example is None:
            chosen = self._choose(records, rng)
            masks = [decode_rle(record.rle) for record in chosen]
            example = _Example(image, [record.phrase for record in chosen], masks)
        if rng.random() < augment.flip:
            example = _mirrored(example)
        if augment.jitter:
            image = jitter(example.image, augment.jitter, rng)
            example = _Example(image, example.phrases, example.targets)
        return example

    def _choose(self, records: list[PhraseRecord], rng: np.random.Generator) -> list[PhraseRecord]:
        order = rng.permutation(len(records))[: self.data.phrases_per_image]
        return [records[i] for i in order]

    def _cropped(
        self, image: NDArray[np.uint8], records: list[PhraseRecord], rng: np.random.Generator
    ) -> _Example | None:
        """A crop with phrases that stay true in it, or None where none does."""
        crop = random_crop(image.shape[0], image.shape[1], rng)
        stable = [record for record in records if record.kind in TRUE_UNDER_CROP]
        phrases, targets = [], []
        for record in self._choose(stable, rng):
            mask = decode_rle(record.rle)
            if survives_crop(mask, crop):
                phrases.append(record.phrase)
                targets.append(crop.of(mask))
        return _Example(crop.of(image), phrases, targets) if phrases else None


def _mirrored(example: _Example) -> _Example:
    return _Example(
        np.ascontiguousarray(example.image[:, ::-1]),
        [swap_left_right(phrase) or phrase for phrase in example.phrases],
        [mask[:, ::-1] for mask in example.targets],
    )


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng((seed, epoch, count)).permutation(count)


def real_requests(
    store: PhraseStore, tokenizer: Tokenizer, size: int, length: int, count: int = 16
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The first phrase of the first `count` validation images, as the network takes them.

    Returns:
        images uint8 (N, S, S, 3) and tokens int64 (N, L), N <= count.
    """
    images, phrases = [], []
    for image_id in store.image_ids("val")[:count]:
        square, _ = letterbox_image(store.photo(image_id), size)
        images.append(square)
        phrases.append(store.phrases(image_id)[0].phrase)
    return np.stack(images), tokenizer.encode(phrases, length).tokens
