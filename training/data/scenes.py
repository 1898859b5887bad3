"""Layouts: photos made of cut-out things and drawn shapes, so that every phrase has exact truth.

A scene shows several things of one class on a photo in which that class is known to be absent, in
a row, a column, the corners or scattered, some recoloured, some larger than others, with a few
things of other classes. Its instances are the visible parts of what was pasted; the phrases come
from the rules that real photos get (`instances`) and from `scene_phrases`. A scene follows from its
random generator alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from training.data.class_words import COLOURLESS
from training.data.coco_annotations import Instance, instance_of
from training.data.colours import COLOUR_NAMES
from training.data.cutouts import Background, CutOut
from training.data.sprites import CONTAINERS, SPRITE_NAMES, draw_sprite, repaint

_CANVASES = ((320, 320), (360, 270), (270, 360), (384, 256))  # width, height
_SPRITE_SHARE = 0.3
_PLAIN_SHARE = 0.25
_LEAST_VISIBLE = 0.75
_MOST_OVERLAP = 0.12
_TRIES = 12
_SMALLEST_SIDE, _LARGEST_SIDE = 26, 200  # pixels of a pasted thing

Pixels = npt.NDArray[np.uint8]
Place = tuple[float, float]
"""Centre, as shares of the canvas."""


class ThingBank(Protocol):
    """Things to paste and photos to paste them on, as `cutouts.CutOutBank` has them; maybe none."""

    @property
    def counts(self) -> Mapping[str, int]: ...

    @property
    def backgrounds(self) -> Sequence[Background]: ...

    def cut(self, name: str, index: int) -> CutOut: ...

    def background(self, index: int) -> Pixels: ...


@dataclass(frozen=True)
class Scene:
    """A composed picture.

    instances: the visible parts of everything pasted, by class. absent: classes that are certainly
    nowhere in it.
    """

    image: Pixels
    instances: dict[str, list[Instance]]
    absent: frozenset[str]


@dataclass(frozen=True)
class _Wish:
    """A thing to paste: centre and side as shares of the canvas, before it is fitted."""

    cut: CutOut
    place: Place
    side: float


def compose_scene(bank: ThingBank, rng: Random) -> Scene:
    """One scene; may come out with fewer things than were tried, or none."""
    width, height = rng.choice(_CANVASES)
    canvas, present = _ground(bank, width, height, rng)
    classes = _class_choice(bank, present, rng)
    main = _siblings(bank, classes, rng)
    wishes = main + _others(bank, classes, main[0].cut.class_name, rng)
    pasted = _paste_all(canvas, wishes, rng)
    instances: dict[str, list[Instance]] = {}
    for name, mask in pasted:
        instances.setdefault(name, []).append(instance_of(mask))
    absent = (frozenset(bank.counts) | frozenset(SPRITE_NAMES)) - present - instances.keys()
    return Scene(canvas, instances, absent)


# -- what is pasted ---------------------------------------------------------------------------


def _class_choice(bank: ThingBank, present: frozenset[str], rng: Random) -> list[str]:
    """Three classes, the main one first, each at most as likely as its root of numbers."""
    names = [name for name in bank.counts if name not in present]
    chosen: list[str] = []
    while len(chosen) < 3:
        if rng.random() < _SPRITE_SHARE or not names:
            name = rng.choice(SPRITE_NAMES)
        else:
            weights = [bank.counts[each] ** 0.5 for each in names]
            name = rng.choices(names, weights)[0]
        if name not in chosen:
            chosen.append(name)
    return chosen


def _siblings(bank: ThingBank, classes: Sequence[str], rng: Random) -> list[_Wish]:
    count = rng.choices((1, 2, 3, 4, 5), (10, 34, 27, 18, 11))[0]
    places = rng.choice(_ARRANGEMENTS)(count, rng)
    base = rng.uniform(0.42, 0.62) / max(1.6, count**0.75)
    sides = [base * rng.uniform(0.85, 1.15) for _ in places]
    if count > 1 and rng.random() < 0.55:  # one stands out, or all differ
        ratios = rng.choice(([1.6], [0.55], [1.55, 0.6], [1.7, 1.2, 0.8, 0.55, 1.0]))
        for index, ratio in zip(rng.sample(range(count), count), ratios, strict=False):
            sides[index] *= ratio
    name = classes[0]
    one_thing = rng.random() < 0.35
    cuts = [_take(bank, name, rng) for _ in range(1 if one_thing else count)]
    if one_thing:
        cuts *= count
    if name in SPRITE_NAMES or (name not in COLOURLESS and rng.random() < 0.6):
        cuts = _coloured(cuts, rng)
    return [_Wish(*each) for each in zip(cuts, places, sides, strict=True)]


def _coloured(cuts: Sequence[CutOut], rng: Random) -> list[CutOut]:
    """The things in two or three colours."""
    palette = rng.sample(COLOUR_NAMES, rng.choice((1, 2, 2, 2, 3, 3)))
    return [_in_colour(cut, rng.choice(palette), rng) for cut in cuts]


def _in_colour(cut: CutOut, colour: str, rng: Random) -> CutOut:
    if cut.class_name in SPRITE_NAMES:
        return draw_sprite(cut.class_name, colour, cut.mask.shape[0], rng)
    return repaint(cut, colour, rng)


def _take(bank: ThingBank, name: str, rng: Random) -> CutOut:
    if name in SPRITE_NAMES:
        return draw_sprite(name, rng.choice(COLOUR_NAMES), 160, rng)
    cut = bank.cut(name, rng.randrange(bank.counts[name]))
    if rng.random() < 0.5:
        cut = CutOut(name, cut.pixels[:, ::-1], cut.mask[:, ::-1])
    return cut


def _others(bank: ThingBank, classes: Sequence[str], main: str, rng: Random) -> list[_Wish]:
    """Things of the other classes; now and then a shape with a thing of the main class inside."""
    wishes: list[_Wish] = []
    for name in classes[1 : 1 + rng.choices((0, 1, 2), (25, 50, 25))[0]]:
        for _ in range(rng.choices((1, 2), (75, 25))[0]):
            place = rng.uniform(0.12, 0.88), rng.uniform(0.12, 0.88)
            wishes.append(_Wish(_take(bank, name, rng), place, rng.uniform(0.14, 0.36)))
    if rng.random() < 0.12:
        shape = rng.choice([name for name in CONTAINERS if name != main])
        centre = rng.uniform(0.25, 0.75), rng.uniform(0.25, 0.75)
        frame = draw_sprite(shape, rng.choice(COLOUR_NAMES), 200, rng)
        wishes.append(_Wish(frame, centre, rng.uniform(0.42, 0.55)))
        wishes.append(_Wish(_take(bank, main, rng), centre, rng.uniform(0.15, 0.22)))
    return wishes


# -- where it goes ----------------------------------------------------------------------------


def _row(count: int, rng: Random) -> list[Place]:
    y, step = rng.uniform(0.3, 0.7), 1 / count
    return [
        (step * (k + 0.5 + rng.uniform(-0.15, 0.15)), y + rng.uniform(-0.05, 0.05))
        for k in range(count)
    ]


def _column(count: int, rng: Random) -> list[Place]:
    return [(y, x) for x, y in _row(count, rng)]


def _corners(count: int, rng: Random) -> list[Place]:
    corners = [(0.2, 0.2), (0.8, 0.2), (0.2, 0.8), (0.8, 0.8)]
    chosen = [*rng.sample(corners, min(count, 4)), (0.5, 0.5)][:count]
    return [(x + rng.uniform(-0.06, 0.06), y + rng.uniform(-0.06, 0.06)) for x, y in chosen]


def _scattered(count: int, rng: Random) -> list[Place]:
    return [(rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9)) for _ in range(count)]


_ARRANGEMENTS: tuple[Callable[[int, Random], list[Place]], ...] = (
    _row,
    _row,
    _column,
    _corners,
    _scattered,
    _scattered,
)


# -- the picture ------------------------------------------------------------------------------


def _ground(bank: ThingBank, width: int, height: int, rng: Random) -> tuple[Pixels, frozenset[str]]:
    """A canvas (H, W, 3) to paste on, and the classes that may be in it."""
    if not bank.backgrounds or rng.random() < _PLAIN_SHARE:
        return _plain(width, height, rng), frozenset()
    index = rng.randrange(len(bank.backgrounds))
    photo = Image.fromarray(bank.background(index))
    scale = max(width / photo.width, height / photo.height) * rng.uniform(1.0, 1.5)
    size = (max(width, round(photo.width * scale)), max(height, round(photo.height * scale)))
    left, top = rng.randint(0, size[0] - width), rng.randint(0, size[1] - height)
    photo = photo.resize(size, Image.Resampling.BILINEAR)
    photo = photo.crop((left, top, left + width, top + height))
    if rng.random() < 0.3:
        photo = photo.filter(ImageFilter.GaussianBlur(rng.uniform(1, 6)))
    return np.array(photo), bank.backgrounds[index].present


def _plain(width: int, height: int, rng: Random) -> Pixels:
    """A gradient between two colours with a little noise."""
    ends = np.array([[rng.uniform(0, 255) for _ in range(3)] for _ in range(2)])
    along = np.linspace(0, 1, height)[:, None] * rng.random()
    along = along + np.linspace(0, 1, width)[None, :] * (1 - along.max())
    noise = np.random.default_rng(rng.randrange(1 << 30)).normal(0, 6, (height, width, 1))
    mixed = ends[0] + (ends[1] - ends[0]) * along[..., None] + noise
    return np.asarray(mixed.clip(0, 255), dtype=np.uint8)


def _paste_all(
    canvas: Pixels, wishes: Sequence[_Wish], rng: Random
) -> list[tuple[str, npt.NDArray[np.bool_]]]:
    """Paste in order where it fits; the class and visible mask of each thing that did."""
    pasted: list[tuple[str, npt.NDArray[np.bool_]]] = []
    whole: list[int] = []
    for wish in wishes:
        for attempt in range(_TRIES):
            placed = _placed(wish, canvas.shape[:2], attempt, rng)
            if placed is None:
                break
            pixels, alpha = placed
            mask = alpha > 0.5
            left = [mask_before & ~mask for _, mask_before in pasted]
            visible = all(
                each.sum() >= _LEAST_VISIBLE * before
                for each, before in zip(left, whole, strict=True)
            )
            covered = any((each & mask).sum() > _MOST_OVERLAP * mask.sum() for _, each in pasted)
            inside = any(_is_inside(mask, each) for _, each in pasted)
            if mask.any() and visible and (inside or not covered):
                canvas[:] = (
                    canvas + alpha[..., None] * (pixels - canvas.astype(np.float32))
                ).round()
                pasted = [(name, each) for (name, _), each in zip(pasted, left, strict=True)]
                pasted.append((wish.cut.class_name, mask))
                whole.append(int(mask.sum()))
                break
    return pasted


def _is_inside(mask: npt.NDArray[np.bool_], other: npt.NDArray[np.bool_]) -> bool:
    return bool((mask & other).sum() >= 0.98 * mask.sum())


def _placed(
    wish: _Wish, size: tuple[int, ...], attempt: int, rng: Random
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]] | None:
    """Pixels (H, W, 3) and opacity (H, W) of a thing on an empty canvas; None if too small.

    Later attempts move it further from its place and make it smaller.
    """
    height, width = size
    tall, wide = wish.cut.mask.shape
    side = wish.side * max(height, width) * 0.96**attempt
    side = min(side, _LARGEST_SIDE)
    scale = side / max(tall, wide)
    new = max(1, round(wide * scale)), max(1, round(tall * scale))
    if side < _SMALLEST_SIDE or new[0] >= width or new[1] >= height:
        return None
    reach = 0.03 * attempt
    at = [
        (place + rng.uniform(-reach, reach)) * length - part / 2
        for place, length, part in zip(wish.place, (width, height), new, strict=True)
    ]
    left = int(min(max(at[0], 1), width - new[0] - 1))
    top = int(min(max(at[1], 1), height - new[1] - 1))
    opacity = Image.fromarray(wish.cut.mask.astype(np.uint8) * 255)
    alpha = np.zeros((height, width), dtype=np.float32)
    pixels = np.zeros((height, width, 3), dtype=np.float32)
    box = slice(top, top + new[1]), slice(left, left + new[0])
    alpha[box] = np.asarray(opacity.resize(new, Image.Resampling.BOX), dtype=np.float32) / 255
    thing = Image.fromarray(wish.cut.pixels).resize(new, Image.Resampling.BILINEAR)
    pixels[box] = np.asarray(thing)
    return pixels, alpha
