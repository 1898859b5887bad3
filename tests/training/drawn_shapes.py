"""Drawn scenes of coloured rectangles, and the phrases that are made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from training.data.coco_annotations import DEFAULT_POLICY, AnnotationPolicy, Instance, instance_of
from training.data.instances import make_phrases
from training.data.lmdb_store import PhraseRecord
from training.data.phrase_choice import PhraseLimits

HEIGHT, WIDTH = 120, 240
RGB = {
    "red": (200, 20, 30),
    "green": (30, 150, 40),
    "blue": (30, 60, 190),
    "yellow": (250, 220, 40),
    "black": (10, 10, 12),
    "white": (250, 250, 250),
}
EVERYTHING = PhraseLimits(
    per_image=1000,
    per_kind=tuple(
        (kind, 100)
        for kind in ("class", "colour", "position", "relation", "ordinal", "size", "plural")
    ),
)


@dataclass(frozen=True)
class Shape:
    """A filled rectangle, x0 y0 x1 y1 in pixels."""

    name: str
    colour: str
    box: tuple[int, int, int, int]

    @property
    def area(self) -> int:
        x0, y0, x1, y1 = self.box
        return (x1 - x0) * (y1 - y0)

    @property
    def centre(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2


def draw(shapes: Sequence[Shape]) -> tuple[np.ndarray, dict[str, list[Instance]]]:
    image = np.full((HEIGHT, WIDTH, 3), 140, dtype=np.uint8)
    instances: dict[str, list[Instance]] = {}
    for shape in shapes:
        x0, y0, x1, y1 = shape.box
        mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
        mask[y0:y1, x0:x1] = True
        image[mask] = RGB[shape.colour]
        instances.setdefault(shape.name, []).append(instance_of(mask))
    return image, instances


def union(shapes: Sequence[Shape]) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for shape in shapes:
        x0, y0, x1, y1 = shape.box
        mask[y0:y1, x0:x1] = True
    return mask


def phrases_of(
    shapes: Sequence[Shape], policy: AnnotationPolicy = DEFAULT_POLICY, seeds: int = 8
) -> list[PhraseRecord]:
    """All phrases, in the wordings of several seeds."""
    image, instances = draw(shapes)
    return [
        phrase
        for seed in range(seeds)
        for phrase in make_phrases(
            image, instances, policy, image_id="1", seed=seed, limits=EVERYTHING
        ).phrases
    ]
