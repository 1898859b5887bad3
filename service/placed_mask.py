"""A mask of a photo that is kept as the window around it: large photos cost what the object costs.

Coordinates are those of pixel edges: pixel (row i, column j) covers j <= x <= j + 1 and
i <= y <= i + 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class PlacedMask:
    """`window`, bool (h, w), lies at `top`, `left` of a photo; all other pixels are outside."""

    window: Mask
    top: int
    left: int
    height: int
    width: int

    @classmethod
    def whole(cls, mask: Mask) -> PlacedMask:
        """A mask of the photo's size, bool (H, W)."""
        return cls(mask, 0, 0, *mask.shape)

    def full(self) -> Mask:
        """The mask at the photo's size, bool (H, W)."""
        mask = np.zeros((self.height, self.width), dtype=np.bool_)
        rows, columns = self.window.shape
        mask[self.top : self.top + rows, self.left : self.left + columns] = self.window
        return mask

    @property
    def area(self) -> int:
        """Pixels inside."""
        return int(np.count_nonzero(self.window))

    def box(self) -> Box | None:
        """x0, y0, x1, y1 of the mask's pixel edges, so x1 - x0 is its width; None if empty."""
        rows = np.flatnonzero(self.window.any(axis=1))
        if not rows.size:
            return None
        columns = np.flatnonzero(self.window.any(axis=0))
        return (
            self.left + int(columns[0]),
            self.top + int(rows[0]),
            self.left + int(columns[-1]) + 1,
            self.top + int(rows[-1]) + 1,
        )

    def cut(self, box: Box) -> Mask:
        """The part within `box`, a box of this mask."""
        x0, y0, x1, y1 = box
        return self.window[y0 - self.top : y1 - self.top, x0 - self.left : x1 - self.left]

    def changes(self) -> NDArray[np.int64]:
        """The pixels at which the mask changes, counted down the columns from 0 (COCO's order).

        Rising int64 (K,); it begins as background, so a mask that holds pixel 0 begins with 0.
        """
        rows, columns = self.window.shape
        strip = np.zeros((columns, self.height), dtype=np.bool_)
        strip[:, self.top : self.top + rows] = self.window.T
        flat = strip.ravel()
        if not flat.size:
            return np.zeros(0, dtype=np.int64)
        inner = np.flatnonzero(flat[1:] != flat[:-1]) + 1
        ends = ([0] if flat[0] else [], [flat.size] if flat[-1] else [])
        found = np.concatenate([ends[0], inner, ends[1]]).astype(np.int64)
        return found + self.left * self.height
