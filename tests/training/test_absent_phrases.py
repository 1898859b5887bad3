"""Phrases to train on whose class is not in the photo: only what is certainly absent is asked."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model.tokenizer import clip_tokenizer
from training.config import config_from_dict
from training.data.absent_phrases import AbsentClasses
from training.data.dataset import Batch, TrainingBatches
from training.data.lmdb_store import ImageRecord, PhraseRecord, PhraseStore, PhraseStoreWriter
from training.data.phrase_records import ObjectRecord, decode_rle, encode_rle
from training.data.phrase_templates import noun_of
from training.object_losses import class_targets, roles_of

_CLOTHES = "clothing-co-parsing"
_PHOTOS = {
    "kitchen": ("coco", ("cup", "oven", "person")),
    "table": ("coco", ("cup",)),
    "road": ("coco", ("truck", "person")),
    "unknown": ("coco-partial", ("person",)),
    "jeans": (_CLOTHES, ("jeans", "hat", "hair")),
    "dress": (_CLOTHES, ("dress", "hair", "bag")),
    "suit": (_CLOTHES, ("blazer", "suit", "jumper")),
    "sweater": (_CLOTHES, ("sweater",)),
    "blazer": (_CLOTHES, ("blazer",)),
    "facade": ("building-facade-segmentation", ("window",)),
}


def _store(path: Path, photos: Mapping[str, tuple[str, tuple[str, ...]]]) -> PhraseStore:
    buffer = io.BytesIO()
    Image.new("RGB", (96, 64), "grey").save(buffer, "JPEG")
    batch, objects = [], {}
    for image_id, (source, names) in photos.items():
        phrases, things = [], []
        for number, name in enumerate(names):
            mask = np.zeros((64, 96), dtype=bool)
            mask[16 * number : 16 * number + 16, 10:80] = True
            rle = encode_rle(mask)
            text = f"the {name}"
            phrases.append(
                PhraseRecord(text, "class", name, rle, False, None, None, number, matched=(number,))
            )
            things.append(ObjectRecord(name, number, rle))
        record = ImageRecord(image_id, "train", source, 64, 96, len(phrases))
        batch.append((record, buffer.getvalue(), phrases))
        objects[image_id] = things
    with PhraseStoreWriter(path, {"maker": "test"}) as writer:
        writer.add(batch, {}, objects)
        writer.finish(photos, {})
    return PhraseStore(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PhraseStore:
    return _store(tmp_path_factory.mktemp("absent") / "store.lmdb", _PHOTOS)


def _asked(store: PhraseStore, image_id: str, count: int = 99, turns: int = 1) -> Counter[str]:
    absent = AbsentClasses([(store, store.image_ids("train"))])
    rng = np.random.default_rng(0)
    drawn = [absent.draw(store, image_id, count, rng) for _ in range(turns)]
    assert all(len({each.class_name for each in turn}) == len(turn) for turn in drawn)
    return Counter(each.class_name for turn in drawn for each in turn if each.phrase)


@pytest.mark.parametrize(
    ("image_id", "names"),
    [
        ("kitchen", {"truck"}),
        ("table", {"oven", "person", "truck"}),
        ("road", {"cup", "oven"}),
        ("unknown", set()),  # what else it shows, nobody has written down
        ("jeans", {"cup", "oven", "bag", "dress"}),  # there may be a truck in that street
        ("dress", {"cup", "oven", "hat", "jeans"}),
        # a blazer may be part of a suit, a sweater be called a jumper
        ("blazer", {"cup", "oven", "hat", "jeans", "bag", "dress", "jumper"}),
        ("sweater", {"cup", "oven", "hat", "jeans", "bag", "dress", "suit"}),
        ("facade", {"cup", "oven"}),
    ],
)
def test_only_what_is_certainly_absent(store: PhraseStore, image_id: str, names: set[str]) -> None:
    assert set(_asked(store, image_id)) == names


def test_the_answer_is_nothing_and_the_words_are_a_class_s(store: PhraseStore) -> None:
    absent = AbsentClasses([(store, store.image_ids("train"))])
    rng, wordings = np.random.default_rng(0), set()
    for _ in range(20):
        for phrase in absent.draw(store, "table", 2, rng):
            assert not decode_rle(phrase.rle).any() and phrase.matched == ()
            noun = noun_of(phrase.class_name)
            assert noun.singular in phrase.phrase or noun.plural in phrase.phrase
            wordings.add(phrase.phrase)
    assert {"the truck", "truck", ""} <= wordings


def test_a_class_is_missed_as_often_as_it_is_met(store: PhraseStore) -> None:
    asked = _asked(store, "table", count=1, turns=600)
    assert asked["person"] > 1.6 * asked["truck"] > 0
    assert 0.7 < asked["oven"] / asked["truck"] < 1.4


def test_where_nothing_is_known_the_setting_is_refused(tmp_path: Path) -> None:
    unknown = _store(
        tmp_path / "u.lmdb", {"a": ("mine", ("cup",)), "b": ("coco-partial", ("cat",))}
    )
    with pytest.raises(ValueError, match=r"data\.absent needs photos .*leave it at 0"):
        AbsentClasses([(unknown, unknown.image_ids("train"))])


def _batches(store: PhraseStore, absent: int, **augment: float) -> TrainingBatches:
    off = {"flip": 0.0, "crop": 0.0, "jitter": 0.0, **augment}
    changes: dict[str, Any] = {
        "store": str(store.path),
        "augment": off,
        "epoch": "images",
        "images_per_batch": len(_PHOTOS),
        "phrases_per_image": 2,
        "absent": absent,
    }
    return TrainingBatches(
        store,
        clip_tokenizer(),
        config_from_dict({"data": changes}).data,
        image_size=64,
        word_length=17,
        steps=5,
        seed=0,
        objects=True,
    )


@pytest.mark.parametrize("augment", [{}, {"flip": 1.0}, {"crop": 1.0}])
def test_a_batch_asks_in_vain(store: PhraseStore, augment: dict[str, float]) -> None:
    """Beside what is there; for them neither the answer nor the class's map holds anything."""
    batches = _batches(store, 2, **augment)
    for step in range(3):
        batch = batches[step]
        roles = roles_of(batch.objects, batch.roles, batch.image_index)
        empty = ~batch.targets.flatten(1).any(1)
        blank = (batch.tokens[:, 2:] == 0).all(1)
        assert int((empty & ~blank).sum()) == 17, "two each, one for kitchen, none for unknown"
        assert empty[blank].all()
        assert not class_targets(batch.targets, roles)[empty].any()
        assert not roles.of_class[empty].any() and roles.known.all()


def test_a_batch_follows_from_the_step_alone(store: PhraseStore) -> None:
    one, other = _batches(store, 2), _batches(store, 2)
    _ = other[0]
    for name in Batch._fields:
        assert torch.equal(getattr(one[3], name), getattr(other[3], name))


def test_it_follows_from_nothing_else_in_another_process(store: PhraseStore) -> None:
    """Sets of words come in another order in every process; what is drawn must not."""
    program = (
        "import sys, numpy as np\nfrom pathlib import Path\n"
        "from training.data.absent_phrases import AbsentClasses\n"
        "from training.data.lmdb_store import PhraseStore\n"
        "store = PhraseStore(Path(sys.argv[1])); ids = store.image_ids('train')\n"
        "absent, rng = AbsentClasses([(store, ids)]), np.random.default_rng(0)\n"
        "print([each.phrase for i in ids for each in absent.draw(store, i, 2, rng)])"
    )
    command = [sys.executable, "-c", program, str(store.path)]
    drawn = {
        subprocess.run(
            command,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(drawn) == 1 and "the" in drawn.pop()


def test_without_the_setting_nothing_is_drawn(store: PhraseStore) -> None:
    batch = _batches(store, 0)[1]
    assert batch.targets.flatten(1).any(1).all()
