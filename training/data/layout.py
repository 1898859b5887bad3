"""Where things are to each other in a photo: places, order, sizes, relations.

Every function answers only when a person would, too: it names a clear answer and None (or
"borderline") for all that lies between, so that no phrase rests on a matter of taste. Distances
are fractions of the photo or of the things themselves. Image axes: x to the right, y down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import numpy.typing as npt

from training.data.coco_annotations import Instance

Verdict = Literal["yes", "no", "borderline"]

MOST_ORDERED = 8  # people do not search for the leftmost of a crowd
CLEAR_SIZE_RATIO = 1.7
_CLEAR_GAP = 0.06  # of the photo's side
_CLEAR_GAP_OF_THING = 0.3  # of the two things' mean extent

REFERENCE_SHARE = 0.005  # of the photo: people orient themselves by things that catch the eye


@dataclass(frozen=True)
class Place:
    """The one thing on a side. `absolute`: it lies in that part of the photo, the others do not."""

    index: int
    side: str
    absolute: bool


def clear_order(things: Sequence[Instance], axis: int, length: int) -> list[int] | None:
    """Indices sorted along an axis (0 = x), or None when any neighbours are too close to call.

    `length` is the photo's side along that axis in pixels.
    """
    order = sorted(range(len(things)), key=lambda index: things[index].centre[axis])
    return (
        order
        if all(_apart(things[a], things[b], axis, length) for a, b in pairwise(order))
        else None
    )


def in_one_row(things: Sequence[Instance]) -> bool:
    """Whether the things stand beside each other: every two share half of the smaller height."""
    tops = max(thing.box[1] for thing in things)
    bottoms = min(thing.box[3] for thing in things)
    return bottoms - tops >= 0.5 * min(thing.extent[1] for thing in things)


def places(things: Sequence[Instance], height: int, width: int) -> list[Place]:
    """The clear places among two to eight things of one class.

    A side is answered when its outermost thing is clearly further out than the next one. Top and
    bottom only when the things are spread more in height than in width: in a row of people on
    the ground nobody looks for "the top person".
    """
    if not 2 <= len(things) <= MOST_ORDERED:
        return []
    spread = [float(np.ptp([thing.centre[axis] for thing in things])) for axis in (0, 1)]
    found = []
    if spread[0] >= spread[1] * 0.7:
        found += _ends(things, 0, width, ("left", "right"))
    if spread[1] > spread[0] * 1.3:
        found += _ends(things, 1, height, ("top", "bottom"))
    if len(things) == 3 and in_one_row(things):
        order = clear_order(things, 0, width)
        if order is not None:
            found.append(Place(order[1], "middle", absolute=False))
    return found


def size_extremes(things: Sequence[Instance]) -> tuple[int | None, int | None]:
    """The clearly largest and smallest thing by mask area (None: too close to call)."""
    if not 2 <= len(things) <= MOST_ORDERED:
        return None, None
    order = sorted(range(len(things)), key=lambda index: things[index].area)
    area = [things[index].area for index in order]
    largest = order[-1] if area[-1] >= CLEAR_SIZE_RATIO * area[-2] else None
    smallest = order[0] if area[1] >= CLEAR_SIZE_RATIO * area[0] else None
    return largest, smallest


def relation_verdict(thing: Instance, reference: Instance, relation: str) -> Verdict:
    """Whether `thing` stands in a relation to `reference`.

    left, right: wholly beyond the reference's middle, its own middle outside the reference, and
    further sideways than up or down. above, below: the same along y and sharing half a width.
    "next to": side by side with a gap under a third of their mean extent.
    """
    if relation == "next to":
        return _next_to(thing, reference)
    axis = 0 if relation in ("left", "right") else 1
    sign = -1 if relation in ("left", "above") else 1
    offset = [sign * (thing.centre[k] - reference.centre[k]) for k in (0, 1)]
    if offset[axis] <= 0:
        return "no"
    other = 1 - axis
    near, far = (thing.box[axis], reference.box[axis + 2])
    if sign < 0:
        near, far = -thing.box[axis + 2], -reference.box[axis]
    clear_of_middle = near >= sign * reference.centre[axis]
    beyond = sign * thing.centre[axis] >= far
    sideways = offset[axis] > abs(offset[other])
    if axis == 1:
        sideways = sideways and _overlap(thing, reference, 0) >= 0.5
    return "yes" if clear_of_middle and beyond and sideways else "borderline"


def on_verdict(thing: Instance, carrier: Instance) -> Verdict:
    """Whether `thing` rests on `carrier`: the lower edge of its mask touches the carrier's mask.

    COCO masks exclude what stands on a table or include it, so touching counts within a margin.
    """
    height = thing.extent[1]
    margin = max(2, round(0.08 * height))
    lower = _lower_edge(thing.mask)
    touched = _grow_down(carrier.mask, margin)
    share = float((lower & touched).sum() / max(1, lower.sum()))
    if share >= 0.6 and thing.centre[1] < carrier.box[3] and thing.area < carrier.area * 2.5:
        return "yes"
    return "no" if share <= 0.05 and _gap(thing, carrier) > 0.2 * height else "borderline"


def _ends(
    things: Sequence[Instance], axis: int, length: int, sides: tuple[str, str]
) -> list[Place]:
    order = sorted(range(len(things)), key=lambda index: things[index].centre[axis])
    found = []
    for side, first, second in ((sides[0], 0, 1), (sides[1], -1, -2)):
        index = order[first]
        if not _apart(things[index], things[order[second]], axis, length):
            continue
        at = [things[other].centre[axis] / length for other in order]
        if first == -1:
            at = [1 - value for value in reversed(at)]
        absolute = at[0] < 0.42 and min(at[1:]) > 0.5 and min(at[1:]) - at[0] > 0.2
        found.append(Place(index, side, absolute))
    return found


def _apart(a: Instance, b: Instance, axis: int, length: int) -> bool:
    gap = abs(a.centre[axis] - b.centre[axis])
    thing = (a.extent[axis] + b.extent[axis]) / 2
    return gap >= max(_CLEAR_GAP * length, _CLEAR_GAP_OF_THING * thing)


def _next_to(thing: Instance, reference: Instance) -> Verdict:
    gap = _gap(thing, reference)
    size = (sum(thing.extent) + sum(reference.extent)) / 4
    apart = max(
        thing.box[0] - reference.box[2], reference.box[0] - thing.box[2]
    )  # negative when the boxes overlap along x
    inside = apart < -0.35 * min(thing.extent[0], reference.extent[0])
    if gap <= 0.33 * size and _overlap(thing, reference, 1) >= 0.5 and not inside:
        return "yes"
    return "no" if gap > 1.2 * size else "borderline"


def _gap(a: Instance, b: Instance) -> float:
    """Distance of the boxes in pixels, 0 when they touch or overlap."""
    dx = max(0.0, a.box[0] - b.box[2], b.box[0] - a.box[2])
    dy = max(0.0, a.box[1] - b.box[3], b.box[1] - a.box[3])
    return float(np.hypot(dx, dy))


def _overlap(a: Instance, b: Instance, axis: int) -> float:
    """Shared length along an axis, as a part of the shorter one."""
    shared = min(a.box[axis + 2], b.box[axis + 2]) - max(a.box[axis], b.box[axis])
    return max(0.0, shared) / min(a.extent[axis], b.extent[axis])


def _lower_edge(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The lowest pixel of each column of the mask's lowest sixth."""
    rows = np.flatnonzero(mask.any(axis=1))
    cut = rows[-1] - max(2, (rows[-1] - rows[0]) // 6)
    low = mask.copy()
    low[:cut] = False
    below = np.zeros_like(low)
    below[:-1] = low[1:]
    return low & ~below


def _grow_down(mask: npt.NDArray[np.bool_], margin: int) -> npt.NDArray[np.bool_]:
    """The mask grown by `margin` pixels up and down."""
    grown = mask.copy()
    for step in range(1, margin + 1):
        grown[step:] |= mask[:-step]
        grown[:-step] |= mask[step:]
    return grown
