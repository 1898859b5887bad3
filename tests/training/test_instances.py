"""Phrases about drawn scenes, checked against what was drawn."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

import numpy as np
import pytest

from tests.training.drawn_shapes import RGB, Shape, phrases_of, union
from training.data.lmdb_store import decode_rle
from training.data.phrase_templates import swap_left_right


def meant(phrase: str, shapes: Sequence[Shape]) -> list[Shape]:
    """What a phrase means in a drawn scene, read from its words alone."""
    by_x = sorted(shapes, key=lambda shape: shape.centre[0])
    by_y = sorted(shapes, key=lambda shape: shape.centre[1])
    ranks = {"first": 0, "second": 1, "third": 2, "fourth": 3, "fifth": 4}
    ordinal = re.search(r"(\w+) (?:\w+ )?from the (left|right)", phrase)
    colour = re.search(rf"\b({'|'.join(RGB)})\b", phrase)
    if ordinal:
        rank = next(rank for word, rank in ranks.items() if word in phrase)
        return [(by_x if ordinal.group(2) == "left" else by_x[::-1])[rank]]
    if colour:
        return [shape for shape in shapes if shape.colour == colour.group(1)]
    for words, chosen in (
        ("middle|centre", by_x[len(by_x) // 2]),
        ("left|leftmost", by_x[0]),
        ("right|rightmost", by_x[-1]),
        ("top|topmost", by_y[0]),
        ("bottom|lowest", by_y[-1]),
        ("big|bigger|biggest|larger|largest", max(shapes, key=lambda shape: shape.area)),
        ("small|smaller|smallest", min(shapes, key=lambda shape: shape.area)),
    ):
        if re.search(rf"\b({words})\b", phrase):
            return [chosen]
    return list(shapes)


def meant_relation(phrase: str, shapes: Sequence[Shape], other: Shape) -> list[Shape]:
    words = ("left of", "right of", "above", "below", "next to", "beside")
    relation = next(word for word in words if word in phrase)
    x, y = other.centre

    def beside(s: Shape) -> bool:
        """Nearer than any two shapes of these scenes that are clearly apart."""
        along_x = max(s.box[0] - other.box[2], other.box[0] - s.box[2], 0)
        along_y = max(s.box[1] - other.box[3], other.box[1] - s.box[3], 0)
        return float(np.hypot(along_x, along_y)) < 10

    near = {
        "left of": lambda s: s.box[2] <= x,
        "right of": lambda s: s.box[0] >= x,
        "above": lambda s: s.box[3] <= y,
        "below": lambda s: s.box[1] >= y,
        "next to": beside,
        "beside": beside,
    }[relation]
    return [shape for shape in shapes if near(shape)]


def random_scene(seed: int) -> list[Shape]:
    """Two to six kites and one cloud on a jittered grid, none overlapping; at times in one row."""
    rng = Random(seed)
    rows = [1] if seed % 4 == 0 else range(3)
    cells = rng.sample([(c, r) for c in range(6) for r in rows], rng.randint(3, 6))
    shapes = []
    for index, (column, row) in enumerate(cells):
        x, y = (
            column * 40 + rng.randint(0, 12),
            row * 40 + rng.randint(0, 12 if len(rows) > 1 else 3),
        )
        width, height = rng.randint(9, 26), rng.randint(9, 26)
        name = "cloud" if index == 0 else "kite"
        shapes.append(Shape(name, rng.choice(list(RGB)), (x, y, x + width, y + height)))
    return shapes


@pytest.mark.parametrize("seed", range(40))
def test_every_mask_is_the_union_of_what_the_phrase_means(seed: int) -> None:
    scene = random_scene(seed)
    kites = [shape for shape in scene if shape.name == "kite"]
    phrases = phrases_of(scene, seeds=3)
    assert {"class"} <= {phrase.kind for phrase in phrases}
    for phrase in phrases:
        shapes = [shape for shape in scene if shape.name == phrase.class_name]
        if phrase.kind == "relation":
            other = scene[0] if phrase.class_name == "kite" else kites[0]
            wanted = meant_relation(phrase.phrase, shapes, other)
        else:
            wanted = meant(phrase.phrase, shapes)
        np.testing.assert_array_equal(decode_rle(phrase.rle), union(wanted), str(phrase.phrase))
        assert phrase.discriminative == (len(wanted) < len(shapes))


def test_the_random_scenes_reach_every_kind() -> None:
    kinds = {
        phrase.kind for seed in range(40) for phrase in phrases_of(random_scene(seed), seeds=1)
    }
    assert kinds == {"class", "colour", "position", "relation", "ordinal", "size", "plural"}


@pytest.mark.parametrize("seed", range(20))
def test_the_swapped_phrase_has_its_own_truth(seed: int) -> None:
    scene = random_scene(seed)
    for phrase in phrases_of(scene, seeds=2):
        assert phrase.swapped == swap_left_right(phrase.phrase)
        if phrase.swapped is None:
            assert phrase.swapped_rle is None
            continue
        if phrase.swapped_rle is None:
            continue
        shapes = [shape for shape in scene if shape.name == phrase.class_name]
        if phrase.kind == "relation":
            kites = [shape for shape in scene if shape.name == "kite"]
            other = scene[0] if phrase.class_name == "kite" else kites[0]
            wanted = meant_relation(phrase.swapped, shapes, other)
        else:
            wanted = meant(phrase.swapped, shapes)
        np.testing.assert_array_equal(decode_rle(phrase.swapped_rle), union(wanted))
