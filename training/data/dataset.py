"""Training batches: a pure function of the seed and the step.

I = images of a batch, N = expressions of a batch, S = input side, L = word length. A batch depends
on nothing but (seed, step), so a resumed run, or one with other workers, sees the same data.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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
from ..object_losses import UNRELATED
from ..vocabulary import NAMELESS
from .absent_phrases import AbsentClasses
from .class_numbers import class_numbers
from .lmdb_file import StoreError
from .lmdb_store import PhraseStore
from .object_labels import object_map, object_names, object_roles, stacked
from .phrase_choice import choose_siblings
from .phrase_records import ObjectRecord, PhraseRecord, decode_rle
from .phrase_templates import swap_left_right
from .run_lengths import mask_changes
from .sampling import TrainingOrder, held_out_photos, training_images
from .transforms import Crop, jitter, random_crop, survives_crop, true_under_crop

_NOTHING = torch.empty(0, dtype=torch.int64)


class Batch(NamedTuple):
    """What one step learns from.

    images: uint8 (I, S, S, 3). tokens: int64 (N, L). targets: float32 (N, S/4, S/4) of 0 and 1.
    image_index: int64 (N,), the image that each expression is about.
    objects: int64 (I, S/4, S/4) and roles: int64 (N, K + 1), see `object_losses`; both empty where
        the run does not ask for them.
    names: int64 (I, K + 1), see `vocabulary`; empty where the run does not ask for them.
    """

    images: Tensor
    tokens: Tensor
    targets: Tensor
    image_index: Tensor
    objects: Tensor = _NOTHING
    roles: Tensor = _NOTHING
    names: Tensor = _NOTHING


_Target = NDArray[np.bool_] | Mapping[str, Any]
"""A mask (H, W), or its run lengths as long as nothing has changed it."""


@dataclass(frozen=True)
class _Example:
    """A photo with some of its phrases; objects, their class names and their roles for each where
    asked for."""

    image: NDArray[np.uint8]
    phrases: list[str]
    targets: list[_Target]
    objects: list[_Target]
    roles: list[NDArray[np.int64]]
    names: list[str]


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
        objects: whether batches carry objects and their roles.
        names: whether they also carry the objects' names.

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
        objects: bool = False,
        names: bool = False,
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
        ids = (images.image_ids for images in self.order.images)
        shown = list(zip(self.stores, ids, strict=True))
        self.absent = AbsentClasses(shown) if data.absent else None
        self.class_numbers = class_numbers(shown) if names else {}
        self.tokenizer, self.data, self.seed = tokenizer, data, seed
        self.image_size, self.word_length = image_size, word_length
        self.steps, self.accumulate, self.rank, self.world = steps, accumulate, rank, world
        self.with_objects = objects

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
        phrases, targets, index, objects, roles, names = [], [], [], [], [], []
        first = micro * self.world + self.rank
        for place in range(first, count, self.world * self.accumulate):
            example = self._example(step * count + place)
            square, geometry = letterbox_image(example.image, size)
            index += [len(images)] * len(example.phrases)
            images.append(square)
            phrases += example.phrases
            targets += [_cells(target, geometry, size // 4) for target in example.targets]
            if self.with_objects:
                masks = [_cells(each, geometry, size // 4) > 0.5 for each in example.objects]
                objects.append(object_map(masks, size // 4))
                roles += example.roles
            if self.class_numbers:
                names.append(object_names(example.names, self.class_numbers))
        tokens = self.tokenizer.encode(phrases, self.word_length).tokens
        return Batch(
            torch.from_numpy(np.stack(images)),
            torch.from_numpy(tokens),
            torch.from_numpy(np.stack(targets)).float(),
            torch.tensor(index),
            torch.from_numpy(np.stack(objects)) if objects else _NOTHING,
            torch.from_numpy(stacked(roles, UNRELATED)) if roles else _NOTHING,
            torch.from_numpy(stacked(names, NAMELESS)) if names else _NOTHING,
        )

    def _example(self, turn: int) -> _Example:
        unit = self.order.unit(turn)
        rng = np.random.default_rng((self.seed, turn))
        store, augment = self.stores[unit.store], self.data.augment
        image, records = store.photo(unit.image_id), store.phrases(unit.image_id)
        records = [records[place] for place in unit.phrases]
        scene = _Labelled(image, store.objects(unit.image_id) if self.with_objects else None)
        absent = []
        if self.absent is not None:
            absent = self.absent.draw(store, unit.image_id, self.data.absent, rng)
        example = None
        if rng.random() < augment.crop:
            example = self._cropped(scene, records, absent, rng)
        if example is None:
            example = scene.example([*self._choose(records, rng), *absent])
        if rng.random() < augment.flip:
            example = _mirrored(example)
        if augment.jitter:
            example = replace(example, image=jitter(example.image, augment.jitter, rng))
        return example

    def _choose(self, records: list[PhraseRecord], rng: np.random.Generator) -> list[PhraseRecord]:
        count = self.data.phrases_per_image
        if self.data.siblings and rng.random() < self.data.siblings:
            return choose_siblings(records, count, rng)
        return [records[i] for i in rng.permutation(len(records))[:count]]

    def _cropped(
        self,
        scene: _Labelled,
        records: list[PhraseRecord],
        absent: list[PhraseRecord],
        rng: np.random.Generator,
    ) -> _Example | None:
        """A crop with phrases that stay true in it, or None where none does.

        What is absent from the photo is absent from the crop.

        Where an epoch passes over every phrase, None as soon as one would be lost.
        """
        crop = random_crop(scene.image.shape[0], scene.image.shape[1], rng)
        stable = [record for record in records if true_under_crop(record.kind, record.phrase)]
        kept = [
            record
            for record in self._choose(stable, rng)
            if survives_crop(decode_rle(record.rle), crop)
        ]
        needed = len(records) if self.data.epoch == "phrases" else 1
        if len(kept) < needed:
            return None
        return _cropped_to(crop, scene.example([*kept, *absent]))


@dataclass(frozen=True)
class _Labelled:
    """A photo as stored, with its objects where they are asked for and known."""

    image: NDArray[np.uint8]
    objects: Sequence[ObjectRecord] | None

    def example(self, records: Sequence[PhraseRecord]) -> _Example:
        return _Example(
            self.image,
            [record.phrase for record in records],
            [record.rle for record in records],
            [each.rle for each in self.objects or ()],
            [object_roles(record, self.objects) for record in records],
            [each.class_name for each in self.objects or ()],
        )


def _mixed_stores(data: DataSection) -> list[PhraseStore]:
    return [_named_store(mix.store, "data.mix") for mix in data.mix]


def _named_store(path: str, setting: str) -> PhraseStore:
    try:
        return PhraseStore(Path(path))
    except StoreError as error:
        raise StoreError(f"{setting}: {error}") from error


def _mirrored(example: _Example) -> _Example:
    return replace(
        example,
        image=np.ascontiguousarray(example.image[:, ::-1]),
        phrases=[swap_left_right(phrase) or phrase for phrase in example.phrases],
        targets=[_mask(target)[:, ::-1] for target in example.targets],
        objects=[_mask(each)[:, ::-1] for each in example.objects],
    )


def _cropped_to(crop: Crop, example: _Example) -> _Example:
    return replace(
        example,
        image=crop.of(example.image),
        targets=[crop.of(_mask(target)) for target in example.targets],
        objects=[crop.of(_mask(each)) for each in example.objects],
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
