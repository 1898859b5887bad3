"""Batches: a function of the step alone, however they are made; true under augmentation."""

from __future__ import annotations

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from model.preprocess import letterbox_geometry, letterbox_mask
from model.tokenizer import clip_tokenizer
from training.config import DataSection, config_from_dict
from training.data.dataset import Batch, TrainingBatches, build_order, real_requests
from training.data.lmdb_file import StoreError
from training.data.lmdb_store import (
    ImageRecord,
    PhraseRecord,
    PhraseStore,
    PhraseStoreWriter,
    decode_rle,
    encode_rle,
)

OFF = {"flip": 0.0, "crop": 0.0, "jitter": 0.0}


def _section(run: dict[str, Any], **changes: Any) -> DataSection:
    return config_from_dict({"data": {**run["data"], **changes}}).data


def _batches(
    run: dict[str, Any],
    image_size: int = 64,
    shares: tuple[int, int, int] = (1, 0, 1),
    **changes: Any,
) -> TrainingBatches:
    """`shares`: accumulate, rank, world."""
    data = _section(run, **changes)
    accumulate, rank, world = shares
    return TrainingBatches(
        PhraseStore(Path(data.store)),
        clip_tokenizer(),
        data,
        image_size=image_size,
        word_length=17,
        steps=10,
        seed=3,
        accumulate=accumulate,
        rank=rank,
        world=world,
    )


def _equal(first: Batch, second: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def _by_image(batch: Batch) -> list[tuple[bytes, bytes, bytes]]:
    """Each image with its tokens and targets."""
    return [
        (
            image.numpy().tobytes(),
            batch.tokens[batch.image_index == place].numpy().tobytes(),
            batch.targets[batch.image_index == place].numpy().tobytes(),
        )
        for place, image in enumerate(batch.images)
    ]


def _make_store(path: Path, photos: dict[str, tuple[str, int | None]], phrases: int = 2) -> Path:
    """A store of grey photos: {image id: (split, COCO number)}."""
    mask = np.zeros((32, 48), dtype=bool)
    mask[8:20, 10:30] = True
    items = []
    for number, (image_id, (split, coco_id)) in enumerate(photos.items()):
        buffer = io.BytesIO()
        Image.new("RGB", (48, 32), (number * 20, 128, 128)).save(buffer, "JPEG")
        records = [
            PhraseRecord(f"{image_id} {n}", "referring", "", encode_rle(mask), False, None, None, n)
            for n in range(phrases)
        ]
        image = ImageRecord(image_id, split, "made", 32, 48, phrases, coco_id)
        items.append((image, buffer.getvalue(), records))
    with PhraseStoreWriter(path, {"made": "for a test"}) as writer:
        writer.add(items, {})
        writer.finish(photos, {})
    return path


def test_shapes_and_index(tiny_run: dict[str, Any]) -> None:
    batch = _batches(tiny_run, epoch="images")[0]
    count = len(batch.tokens)
    assert batch.images.shape == (2, 64, 64, 3)
    assert batch.images.dtype == torch.uint8
    assert batch.tokens.shape == (count, 17)
    assert batch.targets.shape == (count, 16, 16)
    assert set(batch.targets.unique().tolist()) <= {0.0, 1.0}
    assert batch.targets.flatten(1).any(dim=1).all(), "no expression is without a target"
    assert batch.image_index.tolist() == sorted(batch.image_index.tolist())
    assert set(batch.image_index.tolist()) == {0, 1}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_batch_depends_on_the_step_alone(tiny_run: dict[str, Any], workers: int) -> None:
    ordered = _batches(tiny_run)
    expected = [ordered[step] for step in range(6)]
    other = _batches(tiny_run)
    assert all(_equal(other[step], expected[step]) for step in (5, 0, 3))
    loader = DataLoader(
        _batches(tiny_run),
        batch_size=None,
        sampler=range(2, 6),
        num_workers=workers,
        multiprocessing_context="fork",
    )
    assert all(_equal(*pair) for pair in zip(loader, expected[2:], strict=True))
    assert not torch.equal(expected[0].images, expected[1].images)


def test_a_spawned_worker_makes_the_same_batches(tiny_run: dict[str, Any]) -> None:
    mixed = [{"store": tiny_run["data"]["store"], "weight": 0.5}]
    batches = _batches(tiny_run, mix=mixed)
    loader = DataLoader(
        batches,
        batch_size=None,
        sampler=range(4, 6),
        num_workers=1,
        multiprocessing_context="spawn",
    )
    assert all(_equal(batch, batches[4 + place]) for place, batch in enumerate(loader))


def test_no_global_generator_is_read_or_moved(tiny_run: dict[str, Any]) -> None:
    made = []
    for seed in (0, 1):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
        made.append(_batches(tiny_run)[2])
        assert random.getstate() == before[0]
        assert np.random.get_state()[1].tolist() == before[1]
        assert torch.equal(torch.get_rng_state(), before[2])
    assert _equal(*made)


@pytest.mark.parametrize("epoch", ["phrases", "images"])
def test_processes_and_micro_batches_share_the_same_batch(
    tiny_run: dict[str, Any], epoch: str
) -> None:
    settings = {"epoch": epoch, "images_per_batch": 8, "phrases_per_image": 2}
    whole = _batches(tiny_run, **settings)
    expected = [_by_image(whole[step]) for step in range(3)]
    for world, accumulate in ((1, 2), (2, 1), (2, 2), (4, 1), (4, 2)):
        parts = [
            _batches(tiny_run, shares=(accumulate, rank, world), **settings)
            for rank in range(world)
        ]
        assert all(len(part) == 10 * accumulate for part in parts)
        for step, images in enumerate(expected):
            found: list[Any] = [None] * 8
            for micro in range(accumulate):
                for rank, part in enumerate(parts):
                    batch = part[step * accumulate + micro]
                    found[micro * world + rank :: world * accumulate] = _by_image(batch)
            assert found == images


def test_a_batch_that_cannot_be_shared_out_is_refused(tiny_run: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="a multiple of 6"):
        _batches(tiny_run, shares=(2, 0, 3), images_per_batch=8)


def test_every_image_comes_once_a_pass(tiny_run: dict[str, Any]) -> None:
    batches = _batches(tiny_run, augment=OFF, images_per_batch=9, epoch="images")
    passes = [{image.numpy().tobytes() for image in batches[step].images} for step in range(2)]
    assert len(passes[0]) == 9
    assert passes[0] == passes[1]
    assert not torch.equal(batches[0].images, batches[1].images), "but in another order"


@pytest.mark.parametrize("crop", [0.0, 1.0])
def test_an_epoch_loses_no_phrase_to_a_crop(tiny_run: dict[str, Any], crop: float) -> None:
    augment = {**OFF, "crop": crop}
    settings = {"augment": augment, "images_per_batch": 1, "phrases_per_image": 2}
    data = _section(tiny_run, **settings)
    store = PhraseStore(Path(data.store))
    order = build_order(store, data, 3)
    wanted = sorted(
        record.phrase for image in store.image_ids("train") for record in store.phrases(image)
    )
    batches = _batches(tiny_run, **settings)
    tokens = torch.cat([batches[step].tokens for step in range(order.units_per_epoch)])
    expected = clip_tokenizer().encode(wanted, 17).tokens
    assert sorted(tokens.tolist()) == sorted(expected.tolist())


def test_targets_are_the_letterboxed_masks(tiny_run: dict[str, Any]) -> None:
    data = _section(tiny_run, augment=OFF, images_per_batch=1)
    store = PhraseStore(Path(data.store))
    order = build_order(store, data, 3)
    batches = _batches(tiny_run, augment=OFF, images_per_batch=1)
    for step in range(5):
        unit = order.unit(step)
        record = store.image(unit.image_id)
        geometry = letterbox_geometry(record.height, record.width, 64)
        masks = {
            letterbox_mask(decode_rle(phrase.rle), geometry, 16).tobytes()
            for place, phrase in enumerate(store.phrases(unit.image_id))
            if place in unit.phrases
        }
        assert {target.bool().numpy().tobytes() for target in batches[step].targets} == masks


def test_sizes_change_during_the_run(tiny_run: dict[str, Any]) -> None:
    sizes = [[0, 32], [0.5, 64]]
    batches = _batches(tiny_run, sizes=sizes)
    assert [batches.size_at(step) for step in (0, 4, 5, 9)] == [32, 32, 64, 64]
    assert batches[4].images.shape[1] == 32
    assert batches[5].targets.shape[1:] == (16, 16)
    halves = _batches(tiny_run, shares=(2, 0, 1), sizes=sizes)
    assert [halves[item].images.shape[1] for item in (8, 9, 10, 11)] == [32, 32, 64, 64]


def test_a_mirror_image_exchanges_left_and_right(tiny_run: dict[str, Any]) -> None:
    # At 96 pixels the photos keep their size, so that mirroring and letterboxing commute.
    plain = _batches(tiny_run, 96, augment={"flip": 0.0})
    mirrored = _batches(tiny_run, 96, augment={"flip": 1.0})
    exchanged = 0
    for step in range(10):
        before, after = plain[step], mirrored[step]
        assert torch.equal(before.images.flip(2), after.images)
        assert torch.equal(before.targets.flip(2), after.targets)
        exchanged += int((before.tokens != after.tokens).any(dim=1).sum())
    assert exchanged > 0, "the set holds phrases with left and right"


def test_a_mixed_store_gets_its_share(tiny_run: dict[str, Any], tmp_path: Path) -> None:
    other = _make_store(tmp_path / "other.lmdb", {f"o{n}": ("train", None) for n in range(4)})
    mixed = [{"store": str(other), "weight": 0.5}]
    settings = {"mix": mixed, "epoch": "images", "augment": OFF}
    data = _section(tiny_run, **settings)
    order = build_order(PhraseStore(Path(data.store)), data, 3)
    assert order.units_per_epoch == 9 + 4  # half of nine images, rounded to even
    batches = _batches(tiny_run, images_per_batch=13, phrases_per_image=1, **settings)
    words = {
        tuple(row) for row in clip_tokenizer().encode([f"o{n} 0" for n in range(4)], 17).tokens
    }
    words |= {
        tuple(row) for row in clip_tokenizer().encode([f"o{n} 1" for n in range(4)], 17).tokens
    }
    assert sum(tuple(row) in words for row in batches[0].tokens.tolist()) == 4


def test_a_test_photo_of_one_store_does_not_train_from_another(
    tiny_run: dict[str, Any], tmp_path: Path
) -> None:
    photos = {"a": ("train", 1), "b": ("train", 2), "c": ("train", 3), "d": ("val", 4)}
    main = _make_store(tmp_path / "main.lmdb", photos)
    mixed = _make_store(
        tmp_path / "mixed.lmdb", {"x": ("test", 1), "y": ("train", 4), "z": ("train", 9)}
    )
    excluded = _make_store(tmp_path / "excluded.lmdb", {"m": ("testB", 2), "n": ("train", 3)})
    run = {"data": {**tiny_run["data"], "store": str(main)}}
    mix, exclude = [{"store": str(mixed)}], [str(excluded)]
    for changes, left, count in (
        ({}, {"a", "b", "c"}, 0),
        ({"mix": mix}, {"b", "c", "z"}, 2),
        ({"exclude": exclude}, {"a", "c"}, 1),
        ({"mix": mix, "exclude": exclude}, {"c", "z"}, 3),
    ):
        order = build_order(PhraseStore(main), _section(run, **changes), 0)
        shown = {order.unit(turn).image_id for turn in range(order.units_per_epoch * 4)}
        assert (shown, order.left_out) == (left, count)
        assert f"{count} images left out" in order.describe()


def test_an_empty_split_is_refused(tiny_run: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"data\.train_split"):
        _batches(tiny_run, train_split="tset")


def test_a_missing_mixed_store_is_refused(tiny_run: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"data\.mix: no phrase store"):
        _batches(tiny_run, mix=[{"store": str(tmp_path / "none.lmdb")}])
    with pytest.raises(StoreError, match=r"data\.exclude: no phrase store"):
        _batches(tiny_run, exclude=[str(tmp_path / "none.lmdb")])


def test_the_validation_split_is_not_mixed_in(tiny_run: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"data\.val_split validates"):
        _batches(tiny_run, mix=[{"store": tiny_run["data"]["store"], "split": "val"}])


@pytest.mark.parametrize(
    ("mix", "fault"),
    [
        ({"store": "a", "weight": 0}, "above 0"),
        ({"store": "a", "weight": -1}, "above 0"),
        ({"store": "a", "weight": float("nan")}, "above 0"),
        ({"store": "a", "wieght": 1}, "wieght"),
        ({"weight": 1}, "store"),
    ],
)
def test_a_wrong_mixed_store_is_refused(mix: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        config_from_dict({"data": {"mix": [mix]}})


def test_a_wrong_augmentation_is_refused() -> None:
    with pytest.raises(ValueError, match=r"data\.augment"):
        config_from_dict({"data": {"augment": {"flip": 1.5}}})


def test_real_requests_are_what_the_network_takes(tiny_run: dict[str, Any]) -> None:
    store = PhraseStore(Path(tiny_run["data"]["store"]))
    images, tokens = real_requests(store, clip_tokenizer(), 64, 17, count=2)
    assert (images.shape, images.dtype) == ((2, 64, 64, 3), np.uint8)
    assert (tokens.shape, tokens.dtype) == ((2, 17), np.int64)
