"""The order in which a run sees its data: a pure function of the seed and the turn.

A *turn* is a place in the run: turn t is place t % B of the global batch t // B, B images a batch.
A *unit* is what one turn shows: one photo with some of its phrases. An epoch passes over every
unit of the main store once; a mixed store adds a fixed share of units, drawn from passes of its
own. Nothing here knows of processes, workers or resumed runs, so the data cannot depend on them.

numpy only. U = units of a store, T = units of an epoch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

_PHRASE_STREAM = 1 << 31  # tells the seeds of an image's phrases apart from those of an order


class PhraseIndex(Protocol):
    """What an order needs of a store; `lmdb_store.PhraseStore` has it in memory."""

    @property
    def splits(self) -> list[str]: ...

    def image_ids(self, split: str) -> list[str]: ...

    def phrase_count(self, image_id: str) -> int: ...

    def coco_id(self, image_id: str) -> int | None: ...


class Unit(NamedTuple):
    """What one turn shows.

    store: 0 is the main store, then the mixed ones in their order. phrases: int64, places in
    `store.phrases(image_id)`; a batch takes at most `data.phrases_per_image` of them.
    """

    store: int
    image_id: str
    phrases: NDArray[np.int64]


@dataclass(frozen=True)
class TrainingImages:
    """The images of one store that may train, with at least one phrase each.

    weight: the store's share relative to the main store's 1.0. left_out: images that the leak
    filter took away.
    """

    image_ids: Sequence[str]
    phrase_counts: NDArray[np.int64]
    weight: float = 1.0
    left_out: int = 0


def held_out_photos(stores: Iterable[tuple[PhraseIndex, str | None]]) -> frozenset[int]:
    """COCO numbers of the photos that no model may train on.

    Args:
        stores: each with the split of it that trains, or None. Images of every other split but
            "train" are held out: val, test, miniv, testA, whatever it is called.
    """
    return frozenset(
        coco_id
        for store, trained in stores
        for split in _held_out_splits(store, trained)
        for coco_id in map(store.coco_id, store.image_ids(split))
        if coco_id is not None
    )


def _held_out_splits(store: PhraseIndex, trained: str | None) -> list[str]:
    return [split for split in store.splits if split not in ("train", trained)]


def training_images(
    store: PhraseIndex, split: str, held_out: frozenset[int], weight: float = 1.0
) -> TrainingImages:
    """The images of `split` with a phrase, without those whose photo is held out.

    An image that also belongs to a held-out split of its own store is left out whether or not it
    has a COCO number.

    Raises:
        ValueError: if nothing is left.
    """
    with_phrases = [image_id for image_id in store.image_ids(split) if store.phrase_count(image_id)]
    if not with_phrases:
        raise ValueError(
            f"the store has no expressions in its split {split!r} (it has: "
            f"{', '.join(store.splits) or 'none'}); set data.train_split, or a mixed store's "
            "split, to one that `python -m training prepare` reported"
        )
    own = {
        image_id for other in _held_out_splits(store, split) for image_id in store.image_ids(other)
    }
    kept = [
        image_id
        for image_id in with_phrases
        if image_id not in own and store.coco_id(image_id) not in held_out
    ]
    if not kept:
        raise ValueError(
            f"all {len(with_phrases)} images of the split {split!r} are photos that another split "
            "or store holds out for validation or test; train on another split, or take that "
            "store out of data.mix and data.exclude"
        )
    counts = np.array([store.phrase_count(image_id) for image_id in kept], dtype=np.int64)
    return TrainingImages(kept, counts, weight, len(with_phrases) - len(kept))


class TrainingOrder:
    """Which unit each turn of a run shows.

    With chunks of k, an epoch passes over every phrase once: an image's phrases are shuffled and
    cut into chunks of at most k, and the unit is a chunk (k = 1: the paper's image-mask-expression
    triplets). Without, the unit is an image with all of its phrases, and the batch chooses.

    Args:
        images: of the main store, then of the mixed stores.
        chunk: most phrases of a unit; None: all.
        seed: of the run.

    Raises:
        ValueError: if a mixed store's weight is too small to give it a place in an epoch.
    """

    def __init__(self, images: Sequence[TrainingImages], chunk: int | None, seed: int) -> None:
        self.images, self.chunk, self.seed = tuple(images), chunk, seed
        chunks = [
            np.ones_like(store.phrase_counts)
            if chunk is None
            else -(-store.phrase_counts // chunk)  # rounded up
            for store in images
        ]
        self._ends = [np.cumsum(counts) for counts in chunks]
        self._units = tuple(int(ends[-1]) for ends in self._ends)
        main = self._units[0]
        self._quotas = (main, *(round(main * store.weight) for store in images[1:]))
        if not all(self._quotas):
            raise ValueError(
                f"a weight in data.mix is too small for an epoch of {main} images or chunks; "
                "raise it, or take the store out"
            )

    @property
    def units_per_epoch(self) -> int:
        """Turns of an epoch: every unit of the main store, and the mixed stores' shares."""
        return sum(self._quotas)

    @property
    def left_out(self) -> int:
        """Images that the leak filter took away, of all stores."""
        return sum(store.left_out for store in self.images)

    def unit(self, turn: int) -> Unit:
        """What `turn` shows."""
        epoch, position = divmod(turn, self.units_per_epoch)
        plan = _epoch_plan(self._units, self._quotas, self.seed, epoch)
        store, unit = int(plan.store[position]), int(plan.unit[position])
        ends = self._ends[store]
        image = int(np.searchsorted(ends, unit, side="right"))
        images = self.images[store]
        phrases = np.arange(images.phrase_counts[image])
        if self.chunk is not None:
            repeat = int(plan.repeat[position])
            place = unit - (int(ends[image - 1]) if image else 0)
            rng = np.random.default_rng((self.seed, repeat, image, _PHRASE_STREAM + store))
            phrases = rng.permutation(phrases)[place * self.chunk : (place + 1) * self.chunk]
        return Unit(store, images.image_ids[image], phrases)

    def describe(self) -> str:
        """One line for the person who starts a run."""
        shares = ", ".join(str(quota) for quota in self._quotas)
        mixed = f" ({shares} of the stores)" if len(self._quotas) > 1 else ""
        unit = "images" if self.chunk is None else "image-phrase units"
        return (
            f"{self.units_per_epoch} {unit} an epoch{mixed}; {self.left_out} images left out "
            "because their photo is held out for validation or test"
        )


class _EpochPlan(NamedTuple):
    """Of each position (T,): the store, its unit, and which pass over the store it belongs to."""

    store: NDArray[np.uint8]
    unit: NDArray[np.int32]
    repeat: NDArray[np.int32]


@lru_cache(maxsize=4)
def _epoch_plan(
    units: tuple[int, ...], quotas: tuple[int, ...], seed: int, epoch: int
) -> _EpochPlan:
    """The order of an epoch. `units` (U of each store) and `quotas` sum to T units of an epoch."""
    total = sum(quotas)
    unit = np.random.default_rng((seed, epoch, total)).permutation(total)
    store = np.searchsorted(np.cumsum(quotas), unit, side="right")
    repeat = np.full(total, epoch, dtype=np.int64)
    for number in range(1, len(quotas)):
        # Positions in rising order, so that a pass over the store ends before the next begins.
        positions = np.flatnonzero(store == number)
        count, first = units[number], epoch * quotas[number]
        serials = first + np.arange(quotas[number])
        repeat[positions] = serials // count
        for lap in range(int(serials[0]) // count, int(serials[-1]) // count + 1):
            lap_order = np.random.default_rng((seed, lap, count, number)).permutation(count)
            start, end = max(lap * count, first), min((lap + 1) * count, first + len(serials))
            unit[positions[start - first : end - first]] = lap_order[
                start - lap * count : end - lap * count
            ]
    # Small types: every loader process keeps a few epochs, 3 MB each for PhraseCut.
    return _EpochPlan(store.astype(np.uint8), unit.astype(np.int32), repeat.astype(np.int32))
