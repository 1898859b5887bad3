"""Training batches: a pure function of the seed and the step.

I = images of a batch, N = expressions of a batch, S = input side, L = word length. A batch depends
on nothing but (seed, step), so a resumed run, or one with other workers, sees the same data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from model.preprocess import Letterbox, letterbox_image, letterbox_mask, letterbox_runs
from model.tokenizer import Tokenizer

from ..config import DataSection
from .lmdb_file import StoreError
from .lmdb_store import PhraseRecord, PhraseStore, decode_rle
from .phrase_templates import swap_left_right
from .run_lengths import mask_changes
from .sampling import TrainingOrder, held_out_photos, training_images
from .transforms import jitter, random_crop, survives_crop, true_under_crop


class Batch(NamedTuple):
    """What one step learns from.

    images: uint8 (I, S, S, 3). tokens: int64 (N, L). targets: float32 (N, S/4, S/4) of 0 and 1.
    image_index: int64 (N,), the image that each expression is about.
    """

    images: Tensor
    tokens: Tensor
    targets: Tensor
    image_index: Tensor


_Target = NDArray[np.bool_] | Mapping[str, Any]
"""A mask (H, W), or its run lengths as long as nothing has changed it."""


@dataclass(frozen=True)
class _Example:
    image: NDArray[np.uint8]
    phrases: list[str]
    targets: list[_Target]


def build_order(main: PhraseStore, data: DataSection, seed: int) -> TrainingOrder:
    """Which photo and phrases each turn of a run shows, over the main and the mixed stores.

    Photos that any of these stores, or one of `data.exclude`, holds out for validation or test
    are left out wherever they are known by their COCO number; `order.left_out` counts them.

    Raises:
        ValueError: if a store is missing, one has nothing to train on, or `data.mix` names the
            split that validates.
    """
    mixed = _mixed_stores(data)
    for store, mix in zip(mixed, data.mix, strict=True):
        if mix.split == data.val_split and store.path.samefile(main.path):
            raise ValueError(
                f"data.mix trains on {mix.split!r} of {main.path}, which data.val_split validates "
                "on; take it out of data.mix or validate on another split"
            )
    excluded = [_named_store(path, "data.exclude") for path in data.exclude]
    training = [(main, data.train_split, 1.0)]
    training += [(store, mix.split, mix.weight) for store, mix in zip(mixed, data.mix, strict=True)]
    held_out = held_out_photos(
        [*((store, split) for store, split, _ in training), *((store, None) for store in excluded)]
    )
    images = [training_images(store, split, held_out, weight) for store, split, weight in training]
    chunk = data.phrases_per_image if data.epoch == "phrases" else None
    return TrainingOrder(images, chunk, seed)


class TrainingBatches(Dataset[Batch]):
    """This process's micro-batches of a run, in the order in which it needs them.

    Item i is micro-batch m = i % accumulate of step i // accumulate. Of the step's
    `data.images_per_batch` places it holds those with p % (world * accumulate) = m * world + rank,
    so that a step learns from the same images however they are shared out.

    Args:
        store: the main store; the mixed ones are opened from `data.mix`.
        steps: updates of the whole run; `data.sizes` counts in them.
        seed: of the run.
        accumulate: micro-batches of an update.
        rank, world: number of this process, and how many there are.

    Raises:
        ValueError: if a split holds no image with an expression, a mixed store is missing, or
            the batch cannot be shared out evenly.
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
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if data.images_per_batch % (world * accumulate):
            raise ValueError(
                f"data.images_per_batch={data.images_per_batch} cannot be shared out among "
                f"{world} processes with {accumulate} micro-batches each; make it a multiple of "
                f"{world * accumulate}, or change optim.accumulate or the number of processes"
            )
        assert 0 <= rank < world
        self.stores = (store, *_mixed_stores(data))
        self.order = build_order(store, data, seed)
        self.tokenizer, self.data, self.seed = tokenizer, data, seed
        self.image_size, self.word_length = image_size, word_length
        self.steps, self.accumulate, self.rank, self.world = steps, accumulate, rank, world

    def __len__(self) -> int:
        return self.steps * self.accumulate

    def size_at(self, step: int) -> int:
        """Input side in pixels at `step`, by `data.sizes`."""
        share = step / self.steps
        sizes = [size for start, size in self.data.sizes if start <= share]
        return sizes[-1] if sizes else self.image_size

    def __getitem__(self, item: int) -> Batch:
        step, micro = divmod(item, self.accumulate)
        size, count = self.size_at(step), self.data.images_per_batch
        images: list[NDArray[np.uint8]] = []
        phrases, targets, index = [], [], []
        first = micro * self.world + self.rank
        for place in range(first, count, self.world * self.accumulate):
            example = self._example(step * count + place)
            square, geometry = letterbox_image(example.image, size)
            index += [len(images)] * len(example.phrases)
            images.append(square)
            phrases += example.phrases
            targets += [_cells(target, geometry, size // 4) for target in example.targets]
        tokens = self.tokenizer.encode(phrases, self.word_length).tokens
        return Batch(
            torch.from_numpy(np.stack(images)),
            torch.from_numpy(tokens),
            torch.from_numpy(np.stack(targets)).float(),
            torch.tensor(index),
        )

    def _example(self, turn: int) -> _Example:
        unit = self.order.unit(turn)
        rng = np.random.default_rng((self.seed, turn))
        store, augment = self.stores[unit.store], self.data.augment
        image, records = store.photo(unit.image_id), store.phrases(unit.image_id)
        records = [records[place] for place in unit.phrases]
        example = None
        if rng.random() < augment.crop:
            example = self._cropped(image, records, rng)
        if example is None:
            chosen = self._choose(records, rng)
            phrases = [record.phrase for record in chosen]
            example = _Example(image, phrases, [record.rle for record in chosen])
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
        """A crop with phrases that stay true in it, or None where none does.

        Where an epoch passes over every phrase, None as soon as one would be lost.
        """
        crop = random_crop(image.shape[0], image.shape[1], rng)
        stable = [record for record in records if true_under_crop(record.kind, record.phrase)]
        phrases: list[str] = []
        targets: list[_Target] = []
        for record in self._choose(stable, rng):
            mask = decode_rle(record.rle)
            if survives_crop(mask, crop):
                phrases.append(record.phrase)
                targets.append(crop.of(mask))
        needed = len(records) if self.data.epoch == "phrases" else 1
        return _Example(crop.of(image), phrases, targets) if len(phrases) >= needed else None


def _mixed_stores(data: DataSection) -> list[PhraseStore]:
    return [_named_store(mix.store, "data.mix") for mix in data.mix]


def _named_store(path: str, setting: str) -> PhraseStore:
    try:
        return PhraseStore(Path(path))
    except StoreError as error:
        raise StoreError(f"{setting}: {error}") from error


def _mirrored(example: _Example) -> _Example:
    return _Example(
        np.ascontiguousarray(example.image[:, ::-1]),
        [swap_left_right(phrase) or phrase for phrase in example.phrases],
        [_mask(target)[:, ::-1] for target in example.targets],
    )


def _mask(target: _Target) -> NDArray[np.bool_]:
    return target if isinstance(target, np.ndarray) else decode_rle(target)


def _cells(target: _Target, geometry: Letterbox, out_size: int) -> NDArray[np.bool_]:
    if isinstance(target, np.ndarray):
        return letterbox_mask(target, geometry, out_size)
    return letterbox_runs(mask_changes(target), geometry, out_size)


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
