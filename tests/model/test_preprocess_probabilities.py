"""Geometry: probabilities from the square back into the photo."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from model.preprocess import letterbox_geometry, restore_probability, restore_window, sigmoid
from tests.model.photo_shapes import SIDES, SIZE, STRIDES


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
