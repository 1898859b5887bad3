"""Objects in a batch: they follow every augmentation, and say what each phrase means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.tokenizer import clip_tokenizer
from training.config import config_from_dict
from training.data.dataset import Batch, TrainingBatches
from training.data.lmdb_store import PhraseStore
from training.data.object_labels import object_map, object_roles, stacked
from training.data.phrase_choice import choose_siblings
from training.data.phrase_records import ObjectRecord, PhraseRecord, encode_rle
from training.object_losses import (
    ANCHOR,
    MATCHED,
    SIBLING,
    UNKNOWN,
    UNRELATED,
    class_targets,
    roles_of,
    shared_class_rows,
)
from training.vocabulary import NAMELESS

_RLE = encode_rle(np.ones((4, 4), dtype=bool))


def record(phrase: str, group: int, **changes: Any) -> PhraseRecord:
    plain = {"discriminative": False, "swapped": None, "swapped_rle": None, **changes}
    return PhraseRecord(phrase, "position", "cup", _RLE, group=group, **plain)


def things(*groups: int) -> list[ObjectRecord]:
    return [ObjectRecord("thing", group, _RLE) for group in groups]


def test_what_each_object_is_to_a_phrase() -> None:
    objects = things(0, 0, 0, 1, 2)
    phrase = record("the cup left of the book", 0, matched=(1,), anchors=(3,))
    roles = object_roles(phrase, objects).tolist()
    assert roles == [UNRELATED, SIBLING, MATCHED, SIBLING, ANCHOR, UNRELATED]
    nothing = record("the blue cup", 0, matched=())
    assert object_roles(nothing, objects).tolist() == [0, SIBLING, SIBLING, SIBLING, 0, 0]
    assert set(object_roles(record("the cup", 0), objects).tolist()) == {UNKNOWN}
    assert object_roles(phrase, None).tolist() == [UNKNOWN]


def test_rows_of_different_lengths_stack() -> None:
    rows = [np.array([0, MATCHED]), np.array([0, SIBLING, MATCHED]), np.array([UNKNOWN])]
    whole = stacked(rows, UNRELATED)
    assert whole.shape == (3, 3)
    assert whole[0].tolist() == [0, MATCHED, UNRELATED]
    assert whole[2, 0] == UNKNOWN


def test_the_smaller_of_two_is_seen() -> None:
    large, small = np.zeros((2, 8, 8), dtype=bool)
    large[:6, :6] = True
    small[2:4, 2:4] = True
    numbers = object_map([small, large], 8)
    assert numbers[3, 3] == 1 and numbers[0, 0] == 2 and numbers[7, 7] == 0


def test_siblings_come_together() -> None:
    records = [record(f"class {n}", n) for n in range(6)]
    records += [record(f"side {n}", 6, discriminative=True) for n in range(3)]
    rng, first = np.random.default_rng(0), []
    for _ in range(50):
        chosen = choose_siblings(records, 4, rng)
        assert len(chosen) == 4 and len({each.phrase for each in chosen}) == 4
        telling = [each.group == 6 for each in chosen]
        if any(telling):
            place = telling.index(True)
            assert telling[place : place + 3] == [True] * min(3, 4 - place)
        first.append(telling[0])
    assert sum(first) > 25, "a class with phrases that tell apart comes early"
    assert choose_siblings(records, 99, rng) and len(choose_siblings(records, 99, rng)) == 9


def _batches(run: dict[str, Any], names: bool = False, **augment: float) -> TrainingBatches:
    off = {"flip": 0.0, "crop": 0.0, "jitter": 0.0, **augment}
    changes = {"augment": off, "epoch": "images", "siblings": 1.0, "phrases_per_image": 6}
    data = config_from_dict({"data": {**run["data"], **changes}}).data
    return TrainingBatches(
        PhraseStore(Path(data.store)),
        clip_tokenizer(),
        data,
        image_size=128,
        word_length=17,
        steps=10,
        seed=0,
        objects=True,
        names=names,
    )


@pytest.mark.parametrize("augment", [{}, {"flip": 1.0}, {"crop": 1.0}, {"crop": 0.7, "flip": 0.5}])
def test_objects_follow_the_picture(tiny_run: dict[str, Any], augment: dict[str, Any]) -> None:
    """What a phrase matches is its target, mirrored and cropped as it is."""
    batches, told = _batches(tiny_run, **augment), 0
    for step in range(6):
        batch = batches[step]
        roles = roles_of(batch.objects, batch.roles, batch.image_index)
        assert roles.known.all()
        different = (roles.pixels(roles.matched) != batch.targets).float().mean((1, 2))
        assert different.max() < 0.01, "the edges of overlapping things may differ"
        told += int(roles.sibling.any(1).sum())
    assert told > 5 or "crop" in augment


@pytest.mark.parametrize("augment", [{}, {"crop": 0.7, "flip": 0.5}])
def test_names_follow_the_objects(tiny_run: dict[str, Any], augment: dict[str, Any]) -> None:
    """What a phrase matches has the name of its class."""
    batches, checked = _batches(tiny_run, names=True, **augment), 0
    store = batches.stores[0]
    known = [each for key in store.image_ids("train") for each in store.objects(key) or ()]
    assert list(batches.class_numbers) == sorted({each.class_name for each in known})
    phrases = [each for key in store.image_ids("train") for each in store.phrases(key)]
    classes = {each.phrase: each.class_name for each in phrases}
    encoded = clip_tokenizer().encode(list(classes), 17).tokens
    named = {tuple(row): classes[phrase] for row, phrase in zip(encoded, classes, strict=True)}
    for step in range(6):
        batch = batches[step]
        assert batch.names[:, 0].eq(NAMELESS).all()
        for tokens, roles, image in zip(batch.tokens, batch.roles, batch.image_index, strict=True):
            name = named.get(tuple(tokens.tolist()))
            if name is None:
                continue  # mirrored into words that no phrase of the store has
            numbers = batch.names[image][roles == MATCHED]
            assert numbers.eq(batches.class_numbers[name]).all()
            checked += len(numbers)
    assert checked > 20


def test_names_need_objects(tiny_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PhraseStore, "objects", lambda store, image_id: None)
    assert not _batches(tiny_run).class_numbers
    with pytest.raises(ValueError, match=r"vocabulary_weight.*tell objects apart"):
        _batches(tiny_run, names=True)


def test_without_being_asked_a_batch_carries_none(tiny_run: dict[str, Any]) -> None:
    batches = _batches(tiny_run)
    plain = batches[2]
    batches.with_objects = False
    bare = batches[2]
    assert bare.objects.numel() == bare.roles.numel() == 0
    for name in Batch._fields[:4]:
        assert torch.equal(getattr(plain, name), getattr(bare, name))


def test_a_class_map_serves_the_phrases_of_its_class(tiny_run: dict[str, Any]) -> None:
    batch = _batches(tiny_run)[1]
    roles = roles_of(batch.objects, batch.roles, batch.image_index)
    torch.manual_seed(0)
    rows, of = shared_class_rows(roles, batch.image_index)
    assert len(rows) < len(batch.tokens)
    assert sorted(set(of.tolist())) == list(range(len(rows)))
    union = class_targets(batch.targets, roles)
    assert torch.equal(union[rows][of], union)
    assert torch.equal(batch.image_index[rows][of], batch.image_index)
    drawn = {tuple(shared_class_rows(roles, batch.image_index)[0].tolist()) for _ in range(20)}
    assert len(drawn) > 1, "another phrase asks for the class another time"
