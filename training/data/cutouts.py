"""Things cut out of annotated photos by their masks, to be pasted into other photos.

Only whole things are taken: solid, large enough, and not cut off by the photo's edge. Where a
photo's annotation is complete it also serves as a background, because what is not there is known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from training.data.coco_annotations import ImageRow, decode_segmentation
from training.data.phrase_templates import clean_category_name

COMPLETE_SOURCES = frozenset({"coco"})
"""Photos in which every class of COCO is annotated: a class without a mask is not there."""
CUT_SOURCES = frozenset({"coco", "coco-partial"})
_SMALLEST_AREA = 900
_EDGE = 2  # pixels between a whole thing and the photo's edge
_LEAST_FILL = 0.35  # of the box, below which a thing is mostly hidden or a tangle


@dataclass(frozen=True)
class CutOut:
    """A thing by itself: pixels (h, w, 3) uint8 and mask (h, w) bool, as large as its box."""

    class_name: str
    pixels: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Background:
    """A photo, and the classes that may be in it: no phrase may count on their absence."""

    row: ImageRow
    present: frozenset[str]


class CutOutBank:
    """What one split of an instance file offers.

    Args:
        rows: photos of one split. categories: names by id. root: where file names start from.

    Raises:
        ValueError: if there is nothing to cut out or nothing to paste it on.
    """

    def __init__(self, rows: Sequence[ImageRow], categories: Mapping[int, str], root: Path) -> None:
        self._categories, self._root = categories, root
        found: dict[str, list[tuple[ImageRow, Mapping[str, Any]]]] = defaultdict(list)
        self.backgrounds: list[Background] = []
        for row in rows:
            names = [clean_category_name(categories[a["category_id"]]) for a in row.annotations]
            if row.source in COMPLETE_SOURCES:
                self.backgrounds.append(Background(row, frozenset(names)))
            if row.source in CUT_SOURCES:
                for name, annotation in zip(names, row.annotations, strict=True):
                    if _is_whole(row, annotation):
                        found[name].append((row, annotation))
        self._found = {name: found[name] for name in sorted(found)}
        if not self._found or not self.backgrounds:
            raise ValueError(
                "layouts need whole objects and completely annotated photos (source "
                f"{', '.join(sorted(COMPLETE_SOURCES))}); this annotation file has none"
            )

    @property
    def counts(self) -> dict[str, int]:
        """How many things of each class there are."""
        return {name: len(things) for name, things in self._found.items()}

    def cut(self, name: str, index: int) -> CutOut:
        """Thing `index` of a class."""
        row, annotation = self._found[name][index]
        mask = decode_segmentation(annotation["segmentation"], row.height, row.width)
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        return CutOut(name, self._photo(row)[box], mask[box])

    def background(self, index: int) -> npt.NDArray[np.uint8]:
        """Pixels (H, W, 3) of background `index`."""
        return self._photo(self.backgrounds[index].row)

    def _photo(self, row: ImageRow) -> npt.NDArray[np.uint8]:
        return _read(self._root / row.file_name)


@lru_cache(maxsize=64)
def _read(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as photo:
        return np.asarray(photo.convert("RGB"))


def _is_whole(row: ImageRow, annotation: Mapping[str, Any]) -> bool:
    if annotation.get("iscrowd"):
        return False
    x, y, width, height = annotation["bbox"]
    inside = (
        x >= _EDGE
        and y >= _EDGE
        and x + width <= row.width - _EDGE
        and y + height <= row.height - _EDGE
    )
    area = annotation["area"]
    return bool(inside and area >= _SMALLEST_AREA and area >= _LEAST_FILL * width * height)
