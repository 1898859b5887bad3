"""Augmentation that keeps the words true. numpy and Pillow only.

H, W = the photo's sides. All randomness comes from the generator that is passed in.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from .crop_words import speaks_of_more

_TRUE_UNDER_CROP = frozenset({"class", "colour"})
_UNTRUE_UNDER_CROP = frozenset({"position", "relation", "ordinal", "size", "plural"})

_SHORTEST_SIDE, _LONGEST_SIDE = 0.5, 0.95
_LEAST_LEFT = 0.25


_Scalar = TypeVar("_Scalar", bound=np.generic)


class Crop(NamedTuple):
    """A box in pixels, ends excluded."""

    top: int
    bottom: int
    left: int
    right: int

    def of(self, array: NDArray[_Scalar]) -> NDArray[_Scalar]:
        """The part of an (H, W, ...) array inside the box, a view."""
        return array[self.top : self.bottom, self.left : self.right]


def true_under_crop(kind: str, phrase: str) -> bool:
    """Whether a phrase's target in a crop is the crop of its target.

    What is left of a class is still that class, but the second from the left may have become the
    first. The kinds of the templated phrases (`instances.KINDS`) decide, and PhraseCut's
    "relation"; for the phrases that people wrote ("name", "attribute", "verbose", "referring")
    their words do.
    """
    if kind in _TRUE_UNDER_CROP:
        return True
    return kind not in _UNTRUE_UNDER_CROP and not speaks_of_more(phrase)


def random_crop(height: int, width: int, rng: np.random.Generator) -> Crop:
    """A box with each side 50 to 95 % of the photo's."""
    tall = max(1, int(height * rng.uniform(_SHORTEST_SIDE, _LONGEST_SIDE)))
    wide = max(1, int(width * rng.uniform(_SHORTEST_SIDE, _LONGEST_SIDE)))
    top = int(rng.integers(0, height - tall + 1))
    left = int(rng.integers(0, width - wide + 1))
    return Crop(top, top + tall, left, left + wide)


def survives_crop(mask: NDArray[np.bool_], crop: Crop) -> bool:
    """Whether at least a quarter of the target lies inside, so that no sliver is asked for."""
    area = int(mask.sum())
    return area > 0 and int(crop.of(mask).sum()) >= _LEAST_LEFT * area


def jitter(
    image: NDArray[np.uint8], strength: float, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """Scale brightness, contrast and saturation of uint8 (H, W, 3) by 1 +- `strength`.

    Hue stays, so a red cup stays red.
    """
    photo = Image.fromarray(image)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        photo = enhance(photo).enhance(rng.uniform(1 - strength, 1 + strength))
    return np.asarray(photo)
