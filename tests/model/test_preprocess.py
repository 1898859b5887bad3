"""Geometry: a photo into the square and back, for every shape a photo can have."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray
from PIL import Image

from model.preprocess import (
    FILL_COLOUR,
    Letterbox,
    letterbox_geometry,
    letterbox_image,
    letterbox_mask,
    letterbox_picture,
    letterbox_runs,
    restore_probability,
    restore_window,
    sigmoid,
)

SIZE = 96
STRIDES = st.sampled_from([1, 4])
# Odd and even, landscape and portrait, below and above the square, a line, a dot.
SIDES = st.integers(1, 240)


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


# -- geometry -----------------------------------------------------------------------------------


@given(height=st.integers(1, 5000), width=st.integers(1, 5000), size=st.integers(1, 20))
@example(height=3, width=500, size=13)
@example(height=1, width=5000, size=1)
def test_the_photo_fits_centred_with_its_aspect(height: int, width: int, size: int) -> None:
    size *= 32
    box = letterbox_geometry(height, width, size)
    assert (box.size, box.height, box.width) == (size, height, width)
    assert max(box.content_height, box.content_width) == size
    scale = size / max(height, width)
    for content, length, before in (
        (box.content_height, height, box.top),
        (box.content_width, width, box.left),
    ):
        assert 1 <= content <= size
        assert content == 1 or abs(content - length * scale) <= 0.5 + 1e-9
        after = size - before - content
        assert after - before in (0, 1)


def test_known_geometries() -> None:
    assert letterbox_geometry(480, 640, 416) == Letterbox(416, 480, 640, 312, 416, 52, 0)
    assert letterbox_geometry(640, 427, 416) == Letterbox(416, 640, 427, 416, 278, 0, 69)
    assert letterbox_geometry(1, 1, 32) == Letterbox(32, 1, 1, 32, 32, 0, 0)
    assert letterbox_geometry(3, 500, 416) == Letterbox(416, 3, 500, 2, 416, 207, 0)


@pytest.mark.parametrize("size", [0, -32, 31, 100, 415])
def test_a_size_off_the_stride_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="multiple of 32"):
        letterbox_geometry(10, 10, size)


@pytest.mark.parametrize(("height", "width"), [(0, 5), (5, 0), (-1, 5)])
def test_an_empty_photo_is_refused(height: int, width: int) -> None:
    with pytest.raises(ValueError, match="at least 1 x 1"):
        letterbox_geometry(height, width, 32)


# -- images -------------------------------------------------------------------------------------


@given(height=SIDES, width=SIDES)
@example(height=1, width=1)
@example(height=3, width=500)
@example(height=900, width=700)
def test_the_fill_is_outside_the_photo_and_only_there(height: int, width: int) -> None:
    colour = (250, 3, 77)
    square, box = letterbox_image(np.full((height, width, 3), colour, np.uint8), SIZE)
    assert square.shape == (SIZE, SIZE, 3)
    assert square.dtype == np.uint8
    expected = np.full((SIZE, SIZE, 3), FILL_COLOUR, np.uint8)
    rows = slice(box.top, box.top + box.content_height)
    expected[rows, box.left : box.left + box.content_width] = colour
    np.testing.assert_array_equal(square, expected)


def test_the_fill_can_be_chosen() -> None:
    square, _ = letterbox_image(np.zeros((2, 4, 3), np.uint8), 32, fill=(1, 2, 3))
    assert square[0, 0].tolist() == [1, 2, 3]
    assert square[16, 16].tolist() == [0, 0, 0]


@pytest.mark.parametrize(("height", "width"), [(90, 61), (333, 500), (1201, 1600), (50, 2500)])
def test_image_coordinates_are_exact(height: int, width: int) -> None:
    """A photo whose colour is its own coordinate: half a pixel of shift would show."""
    rows = (np.arange(height) + 0.5) / height * 255
    columns = (np.arange(width) + 0.5) / width * 255
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0] = np.rint(rows)[:, None]
    image[..., 1] = np.rint(columns)[None, :]
    square, box = letterbox_image(image, 416)
    y, x = np.arange(416.0) + 0.5 - box.top, np.arange(416.0) + 0.5 - box.left
    inner_y = np.flatnonzero((y > 3) & (y < box.content_height - 3))
    inner_x = np.flatnonzero((x > 3) & (x < box.content_width - 3))
    middle = 208
    expected_rows = y[inner_y] / box.content_height * 255
    expected_columns = x[inner_x] / box.content_width * 255
    # One grey level of rounding on the way in, half a level on the way out.
    assert np.abs(square[inner_y, middle, 0] - expected_rows).max(initial=0) <= 1.0
    assert np.abs(square[middle, inner_x, 1] - expected_columns).max(initial=0) <= 1.0
    # A bias would be a shift: on average the rounding leaves less than a tenth of a pixel.
    tenth_of_a_pixel = 25.5 / box.content_width
    assert abs((square[middle, inner_x, 1] - expected_columns).mean()) < tenth_of_a_pixel


def test_a_view_into_an_image_is_taken_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    flipped, _ = letterbox_image(image[:, ::-1], 64)
    copied, _ = letterbox_image(image[:, ::-1].copy(), 64)
    np.testing.assert_array_equal(flipped, copied)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
)
def test_images_of_another_kind_are_refused(image: NDArray[Any]) -> None:
    with pytest.raises(ValueError, match="convert it to 8-bit RGB"):
        letterbox_image(image, 32)


# -- masks --------------------------------------------------------------------------------------


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


# -- probabilities ------------------------------------------------------------------------------


@given(height=SIDES, width=SIDES, stride=STRIDES)
@example(height=480, width=640, stride=4)
@example(height=641, width=359, stride=4)
def test_restored_coordinates_are_exact(height: int, width: int, stride: int) -> None:
    """A map whose value is its own coordinate comes back as the photo's coordinate."""
    box = letterbox_geometry(height, width, SIZE)
    centres = (np.arange(SIZE // stride) + 0.5) * stride / SIZE
    shape = (SIZE // stride, SIZE // stride)
    for axis in (0, 1):
        ramp = centres[:, None] if axis == 0 else centres[None, :]
        restored = restore_probability(np.broadcast_to(ramp, shape).astype(np.float32), box)
        assert restored.shape == (height, width)
        length, content, offset = (
            (height, box.content_height, box.top),
            (width, box.content_width, box.left),
        )[axis]
        expected = ((np.arange(length) + 0.5) * content / length + offset) / SIZE
        found = restored[:, 0] if axis == 0 else restored[0]
        # The filter needs two cells (of the coarser of the two grids) on each side.
        reach = 2 * max(stride / SIZE, content / length / SIZE) + stride / SIZE
        inner = (expected > (offset / SIZE) + reach) & (
            expected < (offset + content) / SIZE - reach
        )
        # Enlarging reproduces a ramp. Shrinking samples the filter, which leaves at most 0.021 of
        # a photo's pixel (measured over every side length here); half a pixel of shift is far off.
        pixel = content / length / SIZE
        tolerance = 1e-6 if pixel <= stride / SIZE else 0.03 * pixel
        np.testing.assert_allclose(found[inner], expected[inner], atol=tolerance)


@given(
    cells=npst.arrays(np.float32, (24, 24), elements=st.floats(0, 1, width=32)),
    height=SIDES,
    width=SIDES,
)
def test_probabilities_stay_probabilities(
    cells: NDArray[np.float32], height: int, width: int
) -> None:
    restored = restore_probability(cells, letterbox_geometry(height, width, SIZE))
    assert restored.dtype == np.float32
    assert restored.shape == (height, width)
    assert restored.min() >= 0.0
    assert restored.max() <= 1.0


@given(
    cells=npst.arrays(
        np.float32, (24, 24), elements=st.sampled_from([0.0, 0.05, 0.3, 0.5, 0.9, 1.0])
    ),
    scale=st.floats(0.05, 1),
    height=SIDES,
    width=SIDES,
    threshold=st.sampled_from([0.0, 0.02, 0.35, 0.5, 0.93, 1.0]),
)
@example(np.zeros((24, 24), np.float32), 1.0, 100, 50, 0.5)
@example(np.ones((24, 24), np.float32), 1.0, 7, 240, 0.5)
def test_a_window_holds_all_that_is_above_the_threshold(
    cells: NDArray[np.float32], scale: float, height: int, width: int, threshold: float
) -> None:
    cells = cells * np.float32(scale)
    box = letterbox_geometry(height, width, SIZE)
    whole = restore_probability(cells, box)
    window = restore_window(cells, box, threshold)
    rows, columns = window.probability.shape
    placed = np.zeros_like(whole)
    inside = np.s_[window.top : window.top + rows, window.left : window.left + columns]
    placed[inside] = window.probability
    np.testing.assert_allclose(placed[inside], whole[inside], atol=1e-5)
    outside = np.ones(whole.shape, bool)
    outside[inside] = False
    assert (whole[outside] <= threshold).all()


def test_a_window_is_as_small_as_the_object() -> None:
    cells = np.zeros((24, 24), np.float32)
    cells[10:12, 5:8] = 1.0
    window = restore_window(cells, letterbox_geometry(960, 960, SIZE), 0.5)
    # 2 x 3 cells of 40 pixels, and two cells around them for the filter.
    assert (window.top, window.left) == (8 * 40, 3 * 40)
    assert window.probability.shape == (6 * 40, 7 * 40)


def test_a_scaled_picture_has_the_place_of_the_whole_photo() -> None:
    """Half of an odd number of pixels is no exact half; the content does not move for it."""
    photo = np.zeros((301, 451, 3), np.uint8)
    photo[100:200, 150:300] = 255
    square, geometry = letterbox_image(photo, SIZE)
    picture = Image.fromarray(photo).resize((226, 151), Image.Resampling.BOX)
    scaled = letterbox_picture(picture, geometry)
    bright, scaled_bright = square[..., 0] > 127, scaled[..., 0] > 127
    assert (bright != scaled_bright).sum() <= 0.02 * bright.sum()


def test_pictures_of_another_mode_are_refused() -> None:
    with pytest.raises(ValueError, match="must be RGB, not L"):
        letterbox_picture(Image.new("L", (4, 4)), letterbox_geometry(4, 4, 32))


def test_the_border_has_no_influence() -> None:
    box = letterbox_geometry(100, 200, SIZE)
    quiet = np.full((24, 24), 0.25, np.float32)
    loud = quiet.copy()
    loud[: box.top // 4] = 1.0
    loud[-(box.top // 4) :] = 1.0
    np.testing.assert_array_equal(restore_probability(loud, box), restore_probability(quiet, box))


def test_other_floating_types_are_taken() -> None:
    box = letterbox_geometry(9, 5, 32)
    half = np.random.default_rng(1).random((8, 8)).astype(np.float16)
    np.testing.assert_array_equal(
        restore_probability(half, box), restore_probability(half.astype(np.float32), box)
    )


@pytest.mark.parametrize(
    ("probability", "remedy"),
    [
        (np.zeros((8, 8), np.uint8), "astype"),
        (np.zeros((8, 8), np.bool_), "astype"),
        (np.zeros((8, 4), np.float32), "must be square"),
        (np.zeros((1, 8, 8), np.float32), "one map"),
    ],
)
def test_maps_of_another_kind_are_refused(probability: NDArray[Any], remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        restore_probability(probability, letterbox_geometry(5, 7, 32))


def test_sigmoid_matches_double_precision_and_never_overflows() -> None:
    logits = np.concatenate([np.linspace(-30, 30, 4001), [-1e4, -100, 0, 100, 1e4]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = sigmoid(logits.astype(np.float32))
    assert found.dtype == np.float32
    exact = np.where(
        logits >= 0,
        1 / (1 + np.exp(-np.abs(logits))),
        np.exp(-np.abs(logits)) / (1 + np.exp(-np.abs(logits))),
    )
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-38)  # float32's least normal
    assert sigmoid(np.zeros((2, 3), np.float32)).tolist() == [[0.5] * 3] * 2


# -- a mask from its run lengths ------------------------------------------------------------------


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
