"""The one truth for geometry: letterbox and its inverse, for training, evaluation and service.

A photo of any shape is scaled to fit a square of `size` x `size` pixels with its aspect kept,
centred, and the rest of the square is filled with one colour. Masks travel the same way, and a
predicted map of the square travels back to the photo's own pixels.

numpy and Pillow only, so that the service can use it without torch. Axis letters: H, W = the
photo, S = the side of the square, h, w = a map of the square at some stride.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

FILL_COLOUR: tuple[int, int, int] = (123, 117, 104)
"""CLIP's mean colour in 8 bits, as CRIS fills its letterbox: close to zero once normalised."""

SIZE_MULTIPLE = 32
"""The network's coarsest stride; the square's side must be a multiple of it."""

# Pillow shrinks very large photos by an integer factor first and keeps this many times the
# target resolution for the exact resampling after it: several times quicker, no visible loss.
_REDUCING_GAP = 3.0
# Cells that the mask covers by exactly one half must not depend on the rounding of a sum.
_TIE_TOLERANCE = 1e-9
# The positive weights of Pillow's bicubic filter sum to at most 1.135 along an axis, at any phase
# and scale, the negative ones to -0.135. So values from 0 up become at most this many times the
# largest.
_OVERSHOOT = 1.14**2 + 0.14**2


@dataclass(frozen=True, slots=True)
class Letterbox:
    """Where a photo of `height` x `width` pixels lies inside a square of `size` x `size`.

    The photo covers the rows `top .. top + content_height` and the columns
    `left .. left + content_width`. The content is rounded to whole pixels, so the scales of the
    two axes differ a little; every conversion here uses each axis' own.
    """

    size: int
    height: int
    width: int
    content_height: int
    content_width: int
    top: int
    left: int


def letterbox_geometry(height: int, width: int, size: int) -> Letterbox:
    """Fit a photo of `height` x `width` pixels into the centre of a `size` x `size` square.

    Raises ValueError if a side is below 1 or `size` is not a positive multiple of 32.
    """
    if height < 1 or width < 1:
        raise ValueError(
            f"the image must have at least 1 x 1 pixels, not {height} x {width}; "
            "check that it was decoded and cropped correctly"
        )
    if size < SIZE_MULTIPLE or size % SIZE_MULTIPLE:
        raise ValueError(
            f"the input size must be a positive multiple of {SIZE_MULTIPLE}, not {size}; "
            "choose for example 320, 384 or 416"
        )
    longest = max(height, width)
    content_height = _rounded_length(height, size, longest)
    content_width = _rounded_length(width, size, longest)
    return Letterbox(
        size=size,
        height=height,
        width=width,
        content_height=content_height,
        content_width=content_width,
        top=(size - content_height) // 2,
        left=(size - content_width) // 2,
    )


def letterbox_image(
    image: NDArray[np.uint8], size: int, fill: tuple[int, int, int] = FILL_COLOUR
) -> tuple[NDArray[np.uint8], Letterbox]:
    """Letterbox an RGB photo.

    `image`: uint8 (H, W, 3). Returns the square, uint8 (S, S, 3), and its geometry. Resampling is
    bicubic and antialiased. Raises ValueError for another dtype or shape.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(
            f"the image must be uint8 (H, W, 3), not {image.dtype} {image.shape}; "
            "convert it to 8-bit RGB first"
        )
    geometry = letterbox_geometry(image.shape[0], image.shape[1], size)
    return letterbox_picture(Image.fromarray(image), geometry, fill), geometry


def letterbox_picture(
    picture: Image.Image, geometry: Letterbox, fill: tuple[int, int, int] = FILL_COLOUR
) -> NDArray[np.uint8]:
    """The same for a Pillow picture whose place in the square is known; uint8 (S, S, 3).

    `picture`: the whole photo in mode RGB, possibly scaled down by whoever decoded it, since the
    place counts and not the size. Raises ValueError for another mode.
    """
    if picture.mode != "RGB":
        raise ValueError(f"the picture must be RGB, not {picture.mode}; convert it first")
    size = geometry.size
    content = picture.resize(
        (geometry.content_width, geometry.content_height),
        Image.Resampling.BICUBIC,
        reducing_gap=_REDUCING_GAP,
    )
    square = np.empty((size, size, 3), dtype=np.uint8)
    bottom = geometry.top + geometry.content_height
    right = geometry.left + geometry.content_width
    square[geometry.top : bottom, geometry.left : right] = np.asarray(content)
    # Only the border, a row at a time: filling the square pixel by pixel costs a fifth of it all.
    line = np.tile(np.array(fill, dtype=np.uint8), (size, 1))
    for rows in (slice(geometry.top), slice(bottom, size)):
        square[rows] = line
    for columns in (slice(geometry.left), slice(right, size)):
        square[:, columns] = line[columns]
    return square


def letterbox_mask(
    mask: NDArray[np.bool_] | NDArray[np.uint8], geometry: Letterbox, out_size: int
) -> NDArray[np.bool_]:
    """Letterbox a mask onto a grid of `out_size` x `out_size` cells that covers the square.

    `mask`: bool or uint8 (H, W), anything but 0 is foreground. `out_size` divides `geometry.size`
    (S for stride 1, S / 4 for the logits). Returns bool (out_size, out_size): a cell is
    foreground if the mask covers at least half of that part of it which the photo covers, so
    objects that touch the photo's edge keep their edge cells; cells outside the photo are
    background. A mask that is not empty never becomes empty: its best covered cell stays.

    Raises ValueError for another dtype, a shape that is not the geometry's, or a bad `out_size`.
    """
    if mask.dtype not in (np.bool_, np.uint8) or mask.ndim != 2:
        raise ValueError(
            f"the mask must be bool or uint8 (H, W), not {mask.dtype} {mask.shape}; "
            "threshold it first"
        )
    if mask.shape != (geometry.height, geometry.width):
        raise ValueError(
            f"the mask is {mask.shape[0]} x {mask.shape[1]} but its image "
            f"{geometry.height} x {geometry.width}; pass the geometry of the same image"
        )
    foreground = mask.astype(np.bool_, copy=False)
    row_edges, column_edges = _grid_edges(geometry, out_size)
    by_row = _interval_means(foreground, row_edges)  # (out_size, W)
    coverage = _interval_means(by_row.T, column_edges).T  # (out_size, out_size)
    cells: NDArray[np.bool_] = coverage >= 0.5 - _TIE_TOLERANCE
    if not cells.any() and foreground.any():
        cells[np.unravel_index(np.argmax(coverage), coverage.shape)] = True
    return cells


def letterbox_runs(
    changes: NDArray[np.int64], geometry: Letterbox, out_size: int
) -> NDArray[np.bool_]:
    """`letterbox_mask` of a mask that is given as run lengths, several times quicker.

    `changes`: int64 (K,), rising (equal ones cancel): the pixels, counted down the columns from 0
    (COCO's order), at which the mask changes, beginning as background. Returns the same cells as
    `letterbox_mask` of the full mask; its pixels are never made, so the cost grows with K.

    Raises ValueError if `changes` do not rise within the photo, or for a bad `out_size`.
    """
    height, width = geometry.height, geometry.width
    if changes.size and (
        changes[0] < 0 or changes[-1] > height * width or (changes[1:] < changes[:-1]).any()
    ):
        raise ValueError(
            f"the mask's run lengths do not fit a photo of {height} x {width} pixels; "
            "pass the geometry of the same image"
        )
    row_edges, column_edges = _grid_edges(geometry, out_size)
    inside = changes[changes < height * width]
    columns, rows = np.divmod(inside, height)
    # A run that goes on into the next column begins there anew: above row 0 nothing is covered.
    later = np.arange(1, width)
    carried = later[np.searchsorted(inside, later * height) % 2 == 1]
    columns = np.concatenate([columns, carried])
    rows = np.concatenate([rows, np.zeros_like(carried)])
    signs = np.ones(len(rows))
    signs[1 : len(inside) : 2] = -1.0  # every second change ends a run
    coverage = _covered_shares(columns, rows, signs, row_edges, column_edges)
    cells: NDArray[np.bool_] = coverage >= 0.5 - _TIE_TOLERANCE
    if not cells.any() and (np.diff(inside, append=height * width)[::2] > 0).any():
        # Which of several equally covered cells is the best one: as there, so by going there.
        parity = np.searchsorted(inside, np.arange(height * width), side="right") % 2 == 1
        return letterbox_mask(parity.reshape(width, height).T, geometry, out_size)
    return cells


@dataclass(frozen=True, slots=True)
class RestoredWindow:
    """A part of a photo's probability map: float32 (h, w), its first pixel at `top`, `left`."""

    top: int
    left: int
    probability: NDArray[np.float32]


def restore_probability(
    probability: NDArray[np.floating[Any]], geometry: Letterbox
) -> NDArray[np.float32]:
    """Bring a probability map of the square back to the photo's pixels.

    `probability`: floating (h, h), the square at any stride. Returns float32 (H, W) in [0, 1]:
    the photo's region is cut out at sub-pixel accuracy and resampled, bicubic. Cells wholly in
    the letterbox's border have no influence. Raises ValueError for another dtype or shape.
    """
    content = _Content.of(probability, geometry)
    return content.restore((0, geometry.height), (0, geometry.width))


def restore_window(
    probability: NDArray[np.floating[Any]], geometry: Letterbox, threshold: float
) -> RestoredWindow:
    """The part of `restore_probability` that can be above `threshold`; elsewhere nothing is.

    The same numbers (to 1e-5) for the cost of the object instead of the photo. The window is empty
    if nothing can be above. Raises ValueError as `restore_probability` does.
    """
    content = _Content.of(probability, geometry)
    active = content.cells > threshold / _OVERSHOOT
    if not active.any():
        return RestoredWindow(0, 0, np.zeros((0, 0), dtype=np.float32))
    places = np.nonzero(active)
    rows = content.reached(places[0], content.rows, geometry.height)
    columns = content.reached(places[1], content.columns, geometry.width)
    return RestoredWindow(rows[0], columns[0], content.restore(rows, columns))


@dataclass(frozen=True, slots=True)
class _Content:
    """The cells that the photo covers, and where in them its pixels lie.

    `rows`, `columns`: the photo's first edge in cells from the first cell, and cells per pixel.
    """

    cells: NDArray[np.float32]
    rows: tuple[float, float]
    columns: tuple[float, float]

    @classmethod
    def of(cls, probability: NDArray[np.floating[Any]], geometry: Letterbox) -> _Content:
        if not np.issubdtype(probability.dtype, np.floating):
            raise ValueError(
                f"the probability map must be floating, not {probability.dtype}; "
                "convert it with .astype(np.float32)"
            )
        if probability.ndim != 2 or probability.shape[0] != probability.shape[1]:
            raise ValueError(
                f"the probability map must be square (h, h), not {probability.shape}; "
                "pass one map of the letterboxed square at a time"
            )
        stride = geometry.size / probability.shape[0]
        top, bottom = geometry.top / stride, (geometry.top + geometry.content_height) / stride
        left, right = geometry.left / stride, (geometry.left + geometry.content_width) / stride
        # Cut whole cells before resampling: Pillow's filter reads beyond `box`, and what the
        # network says about the border would fade objects that touch the edge of the photo.
        row, column = int(np.floor(top)), int(np.floor(left))
        cells = probability[row : int(np.ceil(bottom)), column : int(np.ceil(right))]
        return cls(
            np.ascontiguousarray(cells, dtype=np.float32),
            (top - row, (bottom - top) / geometry.height),
            (left - column, (right - left) / geometry.width),
        )

    def reached(
        self, places: NDArray[np.int64], axis: tuple[float, float], length: int
    ) -> tuple[int, int]:
        """First pixel and end of what the bicubic filter lets these cells of an axis reach."""
        start, step = axis
        reach = 2 * max(1.0, step)  # of a photo that is smaller than the grid the filter is wider
        first = int(np.floor((places.min() - reach - start) / step))
        end = int(np.ceil((places.max() + 1 + reach - start) / step))
        return max(0, first), min(length, end)

    def restore(self, rows: tuple[int, int], columns: tuple[int, int]) -> NDArray[np.float32]:
        """The probability of these pixels, float32."""
        height, width = self.cells.shape
        (top, row_step), (left, column_step) = self.rows, self.columns
        box = (
            left + columns[0] * column_step,
            top + rows[0] * row_step,
            min(left + columns[1] * column_step, width),
            min(top + rows[1] * row_step, height),
        )
        size = (columns[1] - columns[0], rows[1] - rows[0])
        restored = Image.fromarray(self.cells).resize(size, Image.Resampling.BICUBIC, box=box)
        clipped: NDArray[np.float32] = np.clip(np.asarray(restored), 0.0, 1.0)  # it overshoots
        return clipped


def sigmoid(logits: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
    """The logistic function, float32, same shape; exact at both ends, never overflows."""
    values = logits.astype(np.float32, copy=False)
    decay = np.exp(-np.abs(values))
    numerator = np.where(values >= 0, np.float32(1.0), decay)
    return (numerator / (np.float32(1.0) + decay)).astype(np.float32, copy=False)


def _rounded_length(length: int, size: int, longest: int) -> int:
    """`length * size / longest` rounded half up in integers, at least 1."""
    return max(1, (2 * length * size + longest) // (2 * longest))


def _grid_edges(
    geometry: Letterbox, out_size: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Edges of the rows and of the columns of a grid over the square, in the photo's pixels."""
    if out_size < 1 or geometry.size % out_size:
        raise ValueError(
            f"out_size must divide the square's side {geometry.size}, not be {out_size}; "
            f"use {geometry.size} or {geometry.size // 4}"
        )
    return (
        _cell_edges(
            out_size, geometry.size, geometry.top, geometry.content_height, geometry.height
        ),
        _cell_edges(out_size, geometry.size, geometry.left, geometry.content_width, geometry.width),
    )


def _cell_edges(
    cells: int, size: int, offset: int, content: int, length: int
) -> NDArray[np.float64]:
    """Edges of the square's cells along one axis in the photo's pixels, cut at the photo.

    Returns float64 (cells + 1,), rising from 0 to `length`; a cell outside the photo has equal
    edges.
    """
    square_edges = np.arange(cells + 1) * (size // cells)
    inside = np.clip(square_edges - offset, 0, content)
    return np.asarray(inside * (length / content), dtype=np.float64)


def _interval_means(
    values: NDArray[np.bool_] | NDArray[np.float64], edges: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Means over intervals of the first axis, fractions of a pixel included.

    `values`: (N, M), constant within a pixel. `edges`: (K + 1,), rising within [0, N]. Returns
    float64 (K, M), 0 where an interval is empty. From a running sum, so the cost does not grow
    with the interval's length.
    """
    exact = np.int32 if values.dtype == np.bool_ else np.float64  # integers: four times quicker
    running = np.zeros((values.shape[0] + 1, values.shape[1]), dtype=exact)
    np.cumsum(values, axis=0, dtype=exact, out=running[1:])
    pixel = np.minimum(edges.astype(np.int64), values.shape[0] - 1)
    sums = running[pixel] + (edges - pixel)[:, None] * values[pixel]
    widths = np.diff(edges)[:, None]
    means = np.diff(sums, axis=0) / np.where(widths > 0, widths, 1.0)
    return np.asarray(means, dtype=np.float64)


def _covered_shares(
    columns: NDArray[np.int64],
    rows: NDArray[np.int64],
    signs: NDArray[np.float64],
    row_edges: NDArray[np.float64],
    column_edges: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Share of each cell that is covered, float64 (K, K), 0 where a cell is empty.

    Change i covers (sign +1) or uncovers (-1) its one-pixel column from its row downwards, so
    above a row edge y it covers y - row there. Sums of the signs and of sign * row over the
    changes above each edge therefore tell the area above that edge.
    """
    cells = len(row_edges) - 1
    below = np.searchsorted(row_edges, rows, side="right")  # the first edge past the change
    first = np.searchsorted(column_edges, columns, side="right") - 1
    counts, moments = np.zeros((2, cells * (cells + 1)))
    cell = first
    while cell.size:
        # A pixel lies in one cell or two, in more where the photo is smaller than the grid.
        share = np.minimum(column_edges[cell + 1], columns + 1)
        share -= np.maximum(column_edges[cell], columns)
        place = cell * (cells + 1) + below
        weight = signs * share
        counts += np.bincount(place, weight, counts.size)
        moments += np.bincount(place, weight * rows, counts.size)
        more = (column_edges[cell + 1] < columns + 1) & (cell + 1 < cells)
        columns, rows, signs, below = columns[more], rows[more], signs[more], below[more]
        cell = cell[more] + 1
    counts, moments = (sums.reshape(cells, -1).cumsum(axis=1) for sums in (counts, moments))
    areas = np.diff(row_edges * counts - moments, axis=1).T
    sizes = np.diff(row_edges)[:, None] * np.diff(column_edges)
    return np.asarray(areas / np.where(sizes > 0, sizes, 1.0), dtype=np.float64)
