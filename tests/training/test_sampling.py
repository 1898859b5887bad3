"""The order of a run: every unit once an epoch, shares of mixed stores, nothing held out."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from training.data.sampling import (
    TrainingImages,
    TrainingOrder,
    Unit,
    held_out_photos,
    training_images,
)


@dataclass
class Rows:
    """A store's index: (image id, splits, phrases, COCO number)."""

    rows: list[tuple[str, tuple[str, ...], int, int | None]]

    @property
    def splits(self) -> list[str]:
        return sorted({split for row in self.rows for split in row[1]})

    def image_ids(self, split: str) -> list[str]:
        return [row[0] for row in self.rows if split in row[1]]

    def phrase_count(self, image_id: str) -> int:
        return next(row[2] for row in self.rows if row[0] == image_id)

    def coco_id(self, image_id: str) -> int | None:
        return next(row[3] for row in self.rows if row[0] == image_id)


def _images(counts: list[int], weight: float = 1.0) -> TrainingImages:
    return TrainingImages([f"i{n}" for n in range(len(counts))], np.array(counts), weight)


def _epoch(order: TrainingOrder, epoch: int) -> list[Unit]:
    length = order.units_per_epoch
    return [order.unit(turn) for turn in range(epoch * length, (epoch + 1) * length)]


def _shown(units: list[Unit]) -> list[tuple[str, int]]:
    return [(unit.image_id, int(phrase)) for unit in units for phrase in unit.phrases]


COUNTS = st.lists(st.integers(1, 9), min_size=1, max_size=12)


@given(counts=COUNTS, k=st.integers(1, 10), seed=st.integers(0, 2**31), epoch=st.integers(0, 99))
def test_an_epoch_shows_every_phrase_once(counts: list[int], k: int, seed: int, epoch: int) -> None:
    order = TrainingOrder([_images(counts)], k, seed)
    units = _epoch(order, epoch)
    assert order.units_per_epoch == sum(-(-count // k) for count in counts)
    assert all(1 <= len(unit.phrases) <= k for unit in units)
    every = [(f"i{image}", phrase) for image, n in enumerate(counts) for phrase in range(n)]
    assert sorted(_shown(units)) == sorted(every)


@given(counts=COUNTS, seed=st.integers(0, 2**31), epoch=st.integers(0, 99))
def test_an_epoch_of_images_shows_every_image_once(
    counts: list[int], seed: int, epoch: int
) -> None:
    units = _epoch(TrainingOrder([_images(counts)], None, seed), epoch)
    # Spelled out, so that runs which were started before keep their order.
    wanted = np.random.default_rng((seed, epoch, len(counts))).permutation(len(counts))
    assert [unit.image_id for unit in units] == [f"i{image}" for image in wanted]
    assert all(
        unit.phrases.tolist() == list(range(counts[int(unit.image_id[1:])])) for unit in units
    )


def test_epochs_and_seeds_differ_in_order_and_in_chunks() -> None:
    images = [_images([5] * 40)]
    first = _epoch(TrainingOrder(images, 2, 0), 0)
    for other in (_epoch(TrainingOrder(images, 2, 0), 1), _epoch(TrainingOrder(images, 2, 1), 0)):
        assert [unit.image_id for unit in first] != [unit.image_id for unit in other]
        chunks, others = (
            {(unit.image_id, *sorted(unit.phrases.tolist())) for unit in units}
            for units in (first, other)
        )
        assert chunks != others, "the phrases are shuffled anew before they are cut"


def test_a_turn_is_the_same_in_any_company() -> None:
    images = [_images([3] * 20), _images([2] * 7, 0.5)]
    turns = range(2 * TrainingOrder(images, 2, 5).units_per_epoch)
    forwards, backwards = (
        {turn: _shown([order.unit(turn)]) for turn in some}
        for order, some in (
            (TrainingOrder(images, 2, 5), turns),
            (TrainingOrder(images, 2, 5), turns[::-1]),
        )
    )
    assert forwards == backwards


@settings(max_examples=50)
@given(
    main=COUNTS,
    others=st.lists(st.tuples(COUNTS, st.floats(0.5, 3.0)), min_size=1, max_size=3),
    k=st.sampled_from([None, 1, 2]),
)
def test_mixed_stores_have_their_share_and_repeat_nothing_early(
    main: list[int], others: list[tuple[list[int], float]], k: int | None
) -> None:
    stores = [_images(main), *(_images(counts, weight) for counts, weight in others)]
    alone = [TrainingOrder([store], k, 3).units_per_epoch for store in stores]
    quotas = [alone[0], *(round(alone[0] * weight) for _, weight in others)]
    assume(0 not in quotas)
    order = TrainingOrder(stores, k, 3)
    epochs = [_epoch(order, epoch) for epoch in range(4)]
    for units in epochs:
        assert Counter(unit.store for unit in units) == dict(enumerate(quotas))
    for number, store in enumerate(stores):
        drawn = [unit for units in epochs for unit in units if unit.store == number]
        whole = [(f"i{i}", p) for i, n in enumerate(store.phrase_counts) for p in range(n)]
        for start in range(0, len(drawn) - alone[number] + 1, alone[number]):
            lap = _shown(drawn[start : start + alone[number]])
            assert sorted(lap) == sorted(whole)


def test_the_share_is_the_weight_over_all_weights() -> None:
    order = TrainingOrder(
        [_images([1] * 1000), _images([1] * 70, 0.25), _images([2] * 9, 0.75)], 1, 0
    )
    counts = Counter(unit.store for unit in _epoch(order, 2))
    assert order.units_per_epoch == 2000
    assert counts == {0: 1000, 1: 250, 2: 750}


def test_a_weight_without_a_place_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.mix is too small"):
        TrainingOrder([_images([1] * 10), _images([1] * 10, 0.01)], 1, 0)


def test_a_photo_held_out_by_one_store_does_not_train_from_another() -> None:
    main = Rows([("a", ("train",), 2, 11), ("b", ("train",), 1, 12), ("c", ("train",), 1, None)])
    other = Rows([("x", ("testA",), 1, 12), ("y", ("train",), 1, 13), ("z", ("val",), 1, None)])
    excluded = Rows([("m", ("miniv",), 1, 13), ("n", ("train",), 1, 11)])
    held_out = held_out_photos([(main, "train"), (other, "train"), (excluded, None)])
    assert held_out == {12, 13}
    kept = training_images(main, "train", held_out)
    assert (kept.image_ids, kept.left_out) == (["a", "c"], 1)
    assert kept.phrase_counts.tolist() == [2, 1]
    with pytest.raises(ValueError, match="holds out"):
        training_images(other, "train", held_out)


def test_a_split_that_trains_on_purpose_does_not_hold_itself_out() -> None:
    store = Rows([("a", ("val",), 1, 1), ("b", ("test",), 1, 2)])
    held_out = held_out_photos([(store, "val")])
    assert held_out == {2}
    assert training_images(store, "val", held_out).image_ids == ["a"]
    assert held_out_photos([(store, None)]) == {1, 2}


def test_an_image_of_two_splits_of_its_store_does_not_train() -> None:
    store = Rows([("a", ("train", "val"), 1, None), ("b", ("train",), 1, None)])
    kept = training_images(store, "train", frozenset())
    assert (kept.image_ids, kept.left_out) == (["b"], 1)


def test_an_empty_split_is_refused() -> None:
    store = Rows([("a", ("train",), 0, None), ("b", ("val",), 3, None)])
    with pytest.raises(ValueError, match=r"'train' \(it has: train, val\)"):
        training_images(store, "train", frozenset())


def test_the_order_of_phrasecut_costs_next_to_nothing() -> None:
    """71,746 images with 310,816 phrases; measured: 0.01 s for an epoch's order."""
    counts = np.random.default_rng(0).multinomial(310_816 - 71_746, np.full(71_746, 1 / 71_746)) + 1
    started = time.process_time()
    order = TrainingOrder([TrainingImages([str(n) for n in range(71_746)], counts)], 1, 0)
    assert order.unit(0).image_id != order.unit(310_816).image_id
    assert time.process_time() - started < 0.5
    assert order.units_per_epoch == 310_816
