"""Batches: a function of the step alone, true under augmentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from model.tokenizer import clip_tokenizer
from training.config import DataSection, config_from_dict
from training.data.dataset import TrainingBatches, real_requests
from training.data.lmdb_store import PhraseStore
from training.data.transforms import Crop, jitter, random_crop, survives_crop


def _batches(run: dict[str, Any], image_size: int = 64, **changes: Any) -> TrainingBatches:
    data: DataSection = config_from_dict({"data": {**run["data"], **changes}}).data
    store = PhraseStore(Path(data.store))
    return TrainingBatches(
        store, clip_tokenizer(), data, image_size=image_size, word_length=17, steps=10, seed=3
    )


def test_shapes_and_index(tiny_run: dict[str, Any]) -> None:
    batch = _batches(tiny_run)[0]
    count = len(batch.tokens)
    assert batch.images.shape == (2, 64, 64, 3)
    assert batch.images.dtype == torch.uint8
    assert batch.tokens.shape == (count, 17)
    assert batch.targets.shape == (count, 16, 16)
    assert set(batch.targets.unique().tolist()) <= {0.0, 1.0}
    assert batch.targets.flatten(1).any(dim=1).all(), "no expression is without a target"
    assert batch.image_index.tolist() == sorted(batch.image_index.tolist())
    assert set(batch.image_index.tolist()) == {0, 1}


def test_a_batch_depends_on_the_step_alone(tiny_run: dict[str, Any]) -> None:
    ordered = _batches(tiny_run)
    expected = [ordered[step] for step in range(6)]
    other = _batches(tiny_run)
    for step in (5, 0, 3):
        assert all(torch.equal(a, b) for a, b in zip(other[step], expected[step], strict=True))
    loader = DataLoader(_batches(tiny_run), batch_size=None, sampler=range(4, 6), num_workers=2)
    for batch, wanted in zip(loader, expected[4:], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, wanted, strict=True))
    assert not torch.equal(expected[0].images, expected[1].images)


def test_every_image_comes_once_a_pass(tiny_run: dict[str, Any]) -> None:
    off = {"flip": 0.0, "crop": 0.0, "jitter": 0.0}
    batches = _batches(tiny_run, augment=off, images_per_batch=9, epoch="images")
    passes = [{image.numpy().tobytes() for image in batches[step].images} for step in range(2)]
    assert len(passes[0]) == 9
    assert passes[0] == passes[1]
    assert not torch.equal(batches[0].images, batches[1].images), "but in another order"


def test_sizes_change_during_the_run(tiny_run: dict[str, Any]) -> None:
    batches = _batches(tiny_run, sizes=[[0, 32], [0.5, 64]])
    assert [batches.size_at(step) for step in (0, 4, 5, 9)] == [32, 32, 64, 64]
    assert batches[4].images.shape[1] == 32
    assert batches[5].targets.shape[1:] == (16, 16)


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


def test_an_empty_split_is_refused(tiny_run: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"data\.train_split"):
        _batches(tiny_run, train_split="tset")


def test_crops_stay_inside_and_keep_the_target() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        height, width = int(rng.integers(1, 50)), int(rng.integers(1, 50))
        crop = random_crop(height, width, rng)
        assert 0 <= crop.top < crop.bottom <= height
        assert 0 <= crop.left < crop.right <= width
    mask = np.zeros((10, 10), dtype=bool)
    mask[:, :4] = True
    assert survives_crop(mask, Crop(0, 10, 3, 10))
    assert not survives_crop(mask, Crop(0, 5, 3, 10))
    assert not survives_crop(np.zeros((10, 10), dtype=bool), Crop(0, 10, 0, 10))


def test_jitter_changes_brightness_but_not_hue() -> None:
    red = np.full((4, 4, 3), (200, 30, 30), dtype=np.uint8)
    changed = [jitter(red, 0.3, np.random.default_rng(seed)) for seed in range(20)]
    assert len({image.tobytes() for image in changed}) > 10
    assert all((image[..., 0] > image[..., 1:].max(axis=-1)).all() for image in changed)


def test_real_requests_are_what_the_network_takes(tiny_run: dict[str, Any]) -> None:
    store = PhraseStore(Path(tiny_run["data"]["store"]))
    images, tokens = real_requests(store, clip_tokenizer(), 64, 17, count=2)
    assert (images.shape, images.dtype) == ((2, 64, 64, 3), np.uint8)
    assert (tokens.shape, tokens.dtype) == ((2, 17), np.int64)
