"""Augmentation keeps the words true."""

from __future__ import annotations

import numpy as np
import pytest

from training.data.phrase_templates import swap_left_right
from training.data.transforms import (
    Crop,
    jitter,
    random_crop,
    survives_crop,
    true_under_crop,
)


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


@pytest.mark.parametrize(
    ("kind", "phrase"),
    [
        ("class", "the dogs"),
        ("colour", "the car that is red"),
        ("name", "dog"),
        ("attribute", "wooden striped chair"),
        ("attribute", "standing zebra"),
        ("verbose", "shiny black cat"),
        ("referring", "Brown horse"),
        ("referring", "smiling woman"),
    ],
)
def test_names_and_qualities_survive_a_crop(kind: str, phrase: str) -> None:
    assert true_under_crop(kind, phrase)


@pytest.mark.parametrize(
    ("kind", "phrase"),
    [
        ("position", "cup"),
        ("ordinal", "cup"),
        ("size", "cup"),
        ("plural", "cups"),
        ("relation", "cup"),
        ("name", "top shelf"),
        ("attribute", "large tree"),
        ("attribute", "man in background"),
        ("verbose", "white cup on wooden table"),
        ("verbose", "man wearing hat"),
        ("referring", "guy on LEFT"),
        ("referring", "2nd horse"),
        ("referring", "tallest one"),
        ("referring", "the lady whose head is cut off"),
        ("referring", "three sheep"),
        ("referring", "person closest to camera"),
        ("referring", "the other cat"),
    ],
)
def test_places_orders_sizes_and_relations_do_not(kind: str, phrase: str) -> None:
    assert not true_under_crop(kind, phrase)


@pytest.mark.parametrize(
    ("phrase", "mirrored"),
    [
        ("dog to the left of the rightmost cat", "dog to the right of the leftmost cat"),
        ("Left man", "Right man"),
        ("RIGHT side", "LEFT side"),
        ("lefthand mug, right-hand side", "righthand mug, left-hand side"),
        ("lefty", "righty"),
        ("bright copyright leftover", None),
    ],
)
def test_a_mirrored_phrase_exchanges_left_and_right(phrase: str, mirrored: str | None) -> None:
    assert swap_left_right(phrase) == mirrored
    if mirrored is not None:
        assert swap_left_right(mirrored) == phrase


def test_jitter_changes_brightness_but_not_hue() -> None:
    red = np.full((4, 4, 3), (200, 30, 30), dtype=np.uint8)
    changed = [jitter(red, 0.3, np.random.default_rng(seed)) for seed in range(20)]
    assert len({image.tobytes() for image in changed}) > 10
    assert all((image[..., 0] > image[..., 1:].max(axis=-1)).all() for image in changed)
