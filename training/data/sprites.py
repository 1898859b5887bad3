"""Drawn things: plain shapes in named colours, and things of photos painted over.

A colour is drawn from those that `colours.name_pixels` gives that name, so what is drawn and what
is measured cannot disagree.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from random import Random

import numpy as np
from PIL import Image, ImageDraw

from training.data.colours import COLOUR_NAMES, name_pixels
from training.data.cutouts import CutOut

_FINE = 4  # drawn so many times larger, for smooth edges
_GRID = 15  # steps of the table of colours along each of red, green and blue
_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)

Points = list[tuple[float, float]]


def _regular(corners: int, turn: float = 0.0) -> Points:
    angles = [2 * math.pi * (k / corners + turn) - math.pi / 2 for k in range(corners)]
    return [(0.5 + 0.5 * math.cos(angle), 0.5 + 0.5 * math.sin(angle)) for angle in angles]


def _star() -> Points:
    outer, inner = _regular(5), _regular(5, 0.1)
    shrunk = [(0.5 + (x - 0.5) * 0.42, 0.5 + (y - 0.5) * 0.42) for x, y in inner]
    return [point for pair in zip(outer, shrunk, strict=True) for point in pair]


def _cross() -> Points:
    a, b = 0.33, 0.67
    upper = [(a, 0), (b, 0), (b, a), (1, a), (1, b), (b, b)]
    return [*upper, (b, 1), (a, 1), (a, b), (0, b), (0, a), (a, a)]


def _arrow() -> Points:
    return [(0, 0.35), (0.55, 0.35), (0.55, 0.1), (1, 0.5), (0.55, 0.9), (0.55, 0.65), (0, 0.65)]


def _heart() -> Points:
    points = []
    for step in range(60):
        t = 2 * math.pi * step / 60
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((0.5 + 16 * math.sin(t) ** 3 / 34, 0.45 - y / 34))
    return points


_SHAPES: dict[str, Callable[[], Points]] = {
    "circle": lambda: _regular(64),
    "square": lambda: [(0, 0), (1, 0), (1, 1), (0, 1)],
    "triangle": lambda: [(0.5, 0), (1, 1), (0, 1)],
    "diamond": lambda: [(0.5, 0), (0.9, 0.5), (0.5, 1), (0.1, 0.5)],
    "star": _star,
    "cross": _cross,
    "heart": _heart,
    "arrow": _arrow,
    "hexagon": lambda: _regular(6),
}
SPRITE_NAMES = tuple(sorted(_SHAPES))
CONTAINERS = ("circle", "hexagon", "square")
"""Shapes that have room for another thing inside."""


def draw_sprite(name: str, colour: str, side: int, rng: Random) -> CutOut:
    """A shape of `side` pixels in a colour, lit a little from one side."""
    big = Image.new("L", (side * _FINE, side * _FINE), 0)
    scale = side * _FINE - 1
    ImageDraw.Draw(big).polygon([(x * scale, y * scale) for x, y in _SHAPES[name]()], fill=255)
    mask = np.asarray(big.resize((side, side), Image.Resampling.BOX)) > 127
    pixels = np.empty((side, side, 3), dtype=np.float32)
    pixels[:] = sample_rgb(colour, rng)
    light = np.linspace(rng.uniform(0.9, 1.0), rng.uniform(0.9, 1.05), side, dtype=np.float32)
    pixels *= light[:, None, None] if rng.random() < 0.5 else light[None, :, None]
    return CutOut(name, pixels.clip(0, 255).astype(np.uint8), mask)


def repaint(cut: CutOut, colour: str, rng: Random) -> CutOut:
    """The thing in another colour, its light and shade kept."""
    pixels = cut.pixels.astype(np.float32)
    luma = pixels @ _LUMA
    shade = luma / max(1.0, float(luma[cut.mask].mean()))
    shade = shade.clip(0.35, 1.8) ** rng.uniform(0.35, 0.6)
    painted = np.asarray(sample_rgb(colour, rng), dtype=np.float32) * shade[..., None]
    mixed = 0.9 * painted + 0.1 * pixels
    return CutOut(cut.class_name, mixed.clip(0, 255).astype(np.uint8), cut.mask)


def sample_rgb(colour: str, rng: Random) -> tuple[int, int, int]:
    """A random colour of that name, 0 to 255."""
    red, green, blue = rng.choice(_named_colours()[colour])
    return int(red), int(green), int(blue)


@cache
def _named_colours() -> dict[str, list[tuple[int, int, int]]]:
    """Colours by name, from a grid whose neighbours have the same name."""
    steps = np.linspace(0, 255, _GRID).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1)
    names = name_pixels(grid.reshape(_GRID, -1, 3)).reshape(grid.shape[:3])
    found: dict[str, list[tuple[int, int, int]]] = {}
    for index, name in enumerate(COLOUR_NAMES):
        chosen = grid[names == index]
        found[name] = [(int(r), int(g), int(b)) for r, g, b in chosen]
    return found
