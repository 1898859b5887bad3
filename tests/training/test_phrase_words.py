"""The words of phrases: nouns, sides and colours."""

from __future__ import annotations

import numpy as np
import pytest

from training.data.colours import COLOUR_NAMES, clear_colour, colour_shares, name_pixels
from training.data.phrase_templates import clean_category_name, noun_of, swap_left_right


@pytest.mark.parametrize(
    ("category", "singular", "plural"),
    [
        ("person", "person", "people"),
        ("mouse", "mouse", "mice"),
        ("knife", "knife", "knives"),
        ("bus", "bus", "buses"),
        ("wine glass", "wine glass", "wine glasses"),
        ("traffic light", "traffic light", "traffic lights"),
        ("balcony-fence", "balcony fence", "balcony fences"),
        ("sheep", "sheep", "sheep"),
        ("dress", "dress", "dresses"),
        ("jeans", "jeans", "jeans"),
        ("scissors", "scissors", "scissors"),
        ("skis", "skis", "skis"),
        ("couch", "couch", "couches"),
        ("teddy bear", "teddy bear", "teddy bears"),
    ],
)
def test_nouns(category: str, singular: str, plural: str) -> None:
    noun = noun_of(category)
    assert (noun.singular, noun.plural) == (singular, plural)
    assert noun.countable == (category not in ("jeans", "scissors", "skis"))


def test_names_are_cleaned() -> None:
    assert clean_category_name("Balcony-Fence") == "balcony fence"
    assert clean_category_name("t-shirt") == "t-shirt"
    assert clean_category_name("hair_drier") == "hair drier"


def test_nothing_but_left_and_right_is_swapped() -> None:
    assert swap_left_right("the leftmost dog left of the bright light") == (
        "the rightmost dog right of the bright light"
    )
    assert swap_left_right("the bright light") is None


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((0, 0, 0), "black"),
        ((128, 128, 128), "grey"),
        ((255, 255, 255), "white"),
        ((255, 0, 0), "red"),
        ((255, 165, 0), "orange"),
        ((255, 215, 0), "yellow"),
        ((0, 100, 0), "green"),
        ((0, 0, 128), "blue"),
        ((128, 0, 128), "purple"),
        ((255, 105, 180), "pink"),
        ((139, 69, 19), "brown"),
        ((245, 222, 179), "beige"),
        ((0, 128, 128), None),  # teal: blue to some, green to others
        ((250, 128, 114), None),  # salmon
    ],
)
def test_colour_names(rgb: tuple[int, int, int], name: str | None) -> None:
    image = np.full((4, 4, 3), rgb, dtype=np.uint8)
    shares = colour_shares(name_pixels(image), np.ones((4, 4), dtype=bool))
    assert clear_colour(shares) == name
    assert shares.shape == (len(COLOUR_NAMES),)
