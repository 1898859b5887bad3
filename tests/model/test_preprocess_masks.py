"""Geometry: a mask into the square and back, as pixels and as run lengths."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from model.preprocess import (
    Letterbox,
    letterbox_geometry,
    letterbox_image,
    letterbox_mask,
    letterbox_runs,
    restore_probability,
)
from tests.model.photo_shapes import SIDES, SIZE, STRIDES


def there_and_back(
    mask: NDArray[np.bool_], geometry: Letterbox, out_size: int
) -> NDArray[np.bool_]:
    cells = letterbox_mask(mask, geometry, out_size)
    return restore_probability(cells.astype(np.float32), geometry) >= 0.5


def cell_in_photo(geometry: Letterbox, stride: int) -> float:
    """Side of a cell in the photo's pixels, the longer one where the axes differ."""
    return stride * max(
        geometry.height / geometry.content_height, geometry.width / geometry.content_width
    )


@st.composite
def rectangles(draw: st.DrawFn) -> tuple[NDArray[np.bool_], Letterbox, int]:
    """A mask of one rectangle, each side at least two cells and two pixels or the photo's own.

    What is thinner is below the resolution of one of the two grids and may fade.
    """
    height, width, stride = draw(SIDES), draw(SIDES), draw(STRIDES)
    box = letterbox_geometry(height, width, SIZE)
    spans = []
    for length, content in ((height, box.content_height), (width, box.content_width)):
        shortest = min(length, max(2, int(np.ceil(2 * stride * length / content))))
        extent = draw(st.integers(shortest, length))
        start = draw(st.integers(0, length - extent))
        spans.append(slice(start, start + extent))
    mask = np.zeros((height, width), np.bool_)
    mask[tuple(spans)] = True
    return mask, box, stride


@given(rectangles())
def test_a_mask_returns_to_within_a_pixel(case: tuple[NDArray[np.bool_], Letterbox, int]) -> None:
    """Of the photo, or of the grid where that is the coarser: no edge moves further."""
    mask, box, stride = case
    restored = there_and_back(mask, box, SIZE // stride)
    assert restored.shape == mask.shape
    tolerance = max(1.0, cell_in_photo(box, stride))
    for axis in (0, 1):
        before = np.flatnonzero(mask.any(axis=1 - axis))
        after = np.flatnonzero(restored.any(axis=1 - axis))
        assert abs(int(before[0]) - int(after[0])) <= tolerance
        assert abs(int(before[-1]) - int(after[-1])) <= tolerance
    # And inside it nothing is lost.
    margin = int(np.ceil(tolerance))
    rows, columns = np.nonzero(mask)
    inner = (
        slice(rows.min() + margin, rows.max() + 1 - margin),
        slice(columns.min() + margin, columns.max() + 1 - margin),
    )
    assert restored[inner].all()


@given(
    mask=st.tuples(st.integers(1, SIZE), st.integers(1, SIZE)).flatmap(
        lambda shape: npst.arrays(np.bool_, shape)
    )
)
def test_any_mask_of_a_small_photo_changes_only_at_its_edges(mask: NDArray[np.bool_]) -> None:
    """No photo pixel is smaller than the square's: a pixel whose neighbours agree is kept."""
    restored = there_and_back(mask, letterbox_geometry(*mask.shape, SIZE), SIZE)
    padded = np.pad(mask, 1, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3))
    uniform = windows.all(axis=(2, 3)) | ~windows.any(axis=(2, 3))
    np.testing.assert_array_equal(restored[uniform], mask[uniform])


@given(mask=npst.arrays(np.bool_, st.tuples(st.just(SIZE), st.integers(1, SIZE))))
def test_without_scaling_a_mask_returns_exactly(mask: NDArray[np.bool_]) -> None:
    box = letterbox_geometry(*mask.shape, SIZE)
    np.testing.assert_array_equal(there_and_back(mask, box, SIZE), mask)
    np.testing.assert_array_equal(
        there_and_back(mask.T, letterbox_geometry(*mask.T.shape, SIZE), SIZE), mask.T
    )


@given(height=SIDES, width=SIDES, stride=STRIDES)
@example(height=1, width=1, stride=4)
@example(height=3, width=500, stride=4)
@example(height=500, width=3, stride=1)
def test_the_whole_photo_returns_whole(height: int, width: int, stride: int) -> None:
    full = np.ones((height, width), np.bool_)
    box = letterbox_geometry(height, width, SIZE)
    assert there_and_back(full, box, SIZE // stride).all()
    assert not there_and_back(~full, box, SIZE // stride).any()


@given(data=st.data(), height=SIDES, width=SIDES, stride=STRIDES)
def test_a_single_pixel_never_vanishes(
    data: st.DataObject, height: int, width: int, stride: int
) -> None:
    row = data.draw(st.integers(0, height - 1))
    column = data.draw(st.integers(0, width - 1))
    mask = np.zeros((height, width), np.bool_)
    mask[row, column] = True
    box = letterbox_geometry(height, width, SIZE)
    cells = letterbox_mask(mask, box, SIZE // stride)
    assert cells.any()
    # It stays where it was: its cells touch the place of the pixel.
    y0 = (row / height * box.content_height + box.top) / stride
    y1 = ((row + 1) / height * box.content_height + box.top) / stride
    x0 = (column / width * box.content_width + box.left) / stride
    x1 = ((column + 1) / width * box.content_width + box.left) / stride
    rows, columns = np.nonzero(cells)
    assert ((rows + 1 > y0 - 1e-6) & (rows < y1 + 1e-6)).all()
    assert ((columns + 1 > x0 - 1e-6) & (columns < x1 + 1e-6)).all()


def covered_fractions(
    mask: NDArray[np.bool_], box: Letterbox, out_size: int
) -> NDArray[np.float64]:
    """How far the mask covers each cell's part of the photo, from every pair of intervals."""

    def overlaps(offset: int, content: int, length: int) -> NDArray[np.float64]:
        stride = box.size / out_size
        cells = np.arange(out_size)[:, None] * stride
        pixels = np.arange(length)[None, :]
        low = np.maximum(cells, offset + pixels * content / length)
        high = np.minimum(cells + stride, offset + (pixels + 1) * content / length)
        return np.maximum(high - low, 0.0)

    rows = overlaps(box.top, box.content_height, box.height)
    columns = overlaps(box.left, box.content_width, box.width)
    area = rows.sum(axis=1)[:, None] * columns.sum(axis=1)[None, :]
    covered = rows @ mask.astype(np.float64) @ columns.T
    return np.divide(covered, area, out=np.zeros_like(covered), where=area > 1e-9)


@given(
    mask=st.tuples(st.integers(1, 70), st.integers(1, 70)).flatmap(
        lambda shape: npst.arrays(np.bool_, shape)
    ),
    size=st.sampled_from([32, 64]),
    stride=STRIDES,
    as_uint8=st.booleans(),
)
def test_a_cell_is_foreground_if_half_of_it_is(
    mask: NDArray[np.bool_], size: int, stride: int, as_uint8: bool
) -> None:
    box = letterbox_geometry(*mask.shape, size)
    cells = letterbox_mask(mask * np.uint8(255) if as_uint8 else mask, box, size // stride)
    fractions = covered_fractions(mask, box, size // stride)
    assert cells.dtype == np.bool_
    if (fractions >= 0.5 + 1e-6).any():
        decided = np.abs(fractions - 0.5) > 1e-6
        np.testing.assert_array_equal(cells[decided], fractions[decided] >= 0.5)
        assert cells[~decided].all()  # exactly half counts
    elif mask.any():
        assert fractions[cells].max() >= fractions.max() - 1e-6
    else:
        assert not cells.any()


def test_image_and_mask_travel_together() -> None:
    rng = np.random.default_rng(3)
    for height, width in ((333, 500), (641, 427), (37, 90)):
        y, x = np.mgrid[:height, :width]
        centre_y, centre_x = rng.uniform(0.3, 0.7, 2) * (height, width)
        mask = np.hypot(y - centre_y, x - centre_x) < 0.3 * min(height, width)
        square, box = letterbox_image(
            np.repeat(mask[..., None], 3, 2) * np.uint8(255), 320, (0,) * 3
        )
        cells = letterbox_mask(mask, box, 320)
        assert np.mean(cells != (square[..., 0] >= 128)) < 2e-3
        assert cells.any()


@pytest.mark.parametrize(
    ("mask", "out_size", "remedy"),
    [
        (np.zeros((5, 7), np.float32), 32, "threshold it first"),
        (np.zeros((5, 7, 1), np.uint8), 32, "threshold it first"),
        (np.zeros((7, 5), np.bool_), 32, "geometry of the same image"),
        (np.zeros((5, 7), np.bool_), 0, "must divide"),
        (np.zeros((5, 7), np.bool_), 12, "must divide"),
        (np.zeros((5, 7), np.bool_), 64, "must divide"),
    ],
)
def test_masks_of_another_kind_are_refused(mask: NDArray[Any], out_size: int, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        letterbox_mask(mask, letterbox_geometry(5, 7, 32), out_size)


@given(
    height=st.integers(1, 60),
    width=st.integers(1, 60),
    size=st.sampled_from([32, 64, 96]),
    stride=STRIDES,
    places=st.lists(st.floats(0, 1), max_size=40),
)
@example(height=40, width=1, size=96, stride=1, places=[0.2, 0.4])
@example(height=60, width=50, size=32, stride=4, places=[0.5, 0.5003])
@example(height=3, width=5, size=32, stride=4, places=[])
def test_runs_give_the_cells_of_their_mask(
    height: int, width: int, size: int, stride: int, places: list[float]
) -> None:
    changes = np.sort(np.array([round(place * height * width) for place in places], dtype=np.int64))
    odd = np.searchsorted(changes, np.arange(height * width), side="right") % 2 == 1
    mask = odd.reshape(width, height).T
    geometry = letterbox_geometry(height, width, size)
    cells = letterbox_runs(changes, geometry, size // stride)
    assert np.array_equal(cells, letterbox_mask(mask, geometry, size // stride))


@pytest.mark.parametrize(("height", "width", "size"), [(480, 640, 416), (1999, 1501, 320)])
def test_runs_of_a_large_photo_give_the_cells_of_their_mask(
    height: int, width: int, size: int
) -> None:
    rows, columns = np.mgrid[:height, :width]
    blobs = np.sin(rows / 29.0) * np.sin(columns / 31.0) > 0.3
    striped = (rows + 2 * columns) % 6 < 3  # half of every cell: all of them are close to a tie
    geometry = letterbox_geometry(height, width, size)
    for mask in (blobs, striped, blobs ^ striped):
        changes = 1 + np.flatnonzero(np.diff(mask.T.ravel()))
        changes = np.concatenate([[0] if mask[0, 0] else [], changes]).astype(np.int64)
        expected = letterbox_mask(mask, geometry, size // 4)
        assert np.array_equal(letterbox_runs(changes, geometry, size // 4), expected)


@pytest.mark.parametrize("changes", [[5, 3], [-1, 3], [0, 101]])
def test_runs_that_do_not_fit_the_photo_are_refused(changes: list[int]) -> None:
    with pytest.raises(ValueError, match="geometry of the same image"):
        letterbox_runs(np.array(changes), letterbox_geometry(10, 10, 32), 8)
