"""The objects of a photo as labels: which one each cell shows, and what each is to a phrase.

H, W = cells of the targets, S/4; K = objects.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..object_losses import ANCHOR, MATCHED, SIBLING, UNKNOWN, UNRELATED
from ..vocabulary import NAMELESS
from .phrase_records import ObjectRecord, PhraseRecord


def object_map(masks: Sequence[NDArray[np.bool_]], side: int) -> NDArray[np.int64]:
    """The number (from 1) of the object at each cell, 0 where there is none: (side, side).

    Where two overlap the smaller one is seen.
    """
    numbers = np.zeros((side, side), dtype=np.int64)
    for index in sorted(range(len(masks)), key=lambda each: -int(masks[each].sum())):
        numbers[masks[index]] = index + 1
    return numbers


def object_roles(record: PhraseRecord, objects: Sequence[ObjectRecord] | None) -> NDArray[np.int64]:
    """What each object is to a phrase, by number: (K + 1,); `UNKNOWN` where it does not say."""
    count = len(objects or ())
    if objects is None or record.matched is None:
        return np.full(count + 1, UNKNOWN, dtype=np.int64)
    roles = np.full(count + 1, UNRELATED, dtype=np.int64)
    for index, each in enumerate(objects):
        if index in record.matched:
            roles[index + 1] = MATCHED
        elif each.group == record.group:
            roles[index + 1] = SIBLING
        elif index in record.anchors:
            roles[index + 1] = ANCHOR
    return roles


def object_names(names: Sequence[str], numbers: Mapping[str, int]) -> NDArray[np.int64]:
    """The number of the class name of each object, by the object's number: (K + 1,)."""
    return np.array([NAMELESS, *(numbers[name] for name in names)], dtype=np.int64)


def stacked(rows: Sequence[NDArray[np.int64]], missing: int) -> NDArray[np.int64]:
    """Rows of different numbers of objects as one array (len(rows), K + 1)."""
    longest = max(len(row) for row in rows)
    whole = np.full((len(rows), longest), missing, dtype=np.int64)
    for place, row in enumerate(rows):
        whole[place, : len(row)] = row
    return whole
