"""Geometry: a photo into the square, for every shape a photo can have."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from model.preprocess import (
    FILL_COLOUR,
    Letterbox,
    letterbox_geometry,
    letterbox_image,
    letterbox_picture,
)
from tests.model.photo_shapes import SIDES, SIZE


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
