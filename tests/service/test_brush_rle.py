"""Label Studio's run lengths, against a decoder that follows the format's description."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from service.brush_rle import encode_brush_rle
from service.placed_mask import PlacedMask


def decode(encoded: list[int]) -> NDArray[np.uint8]:
    """The values, one after another; bits are read as text."""
    bits = "".join(f"{byte:08b}" for byte in encoded)
    position = 0

    def read(width: int) -> int:
        nonlocal position
        position += width
        assert position <= len(bits), "the stream ends too early"
        return int(bits[position - width : position], 2)

    count, value_bits = read(32), read(5) + 1
    length_bits = [read(4) + 1 for _ in range(4)]
    values: list[int] = []
    while len(values) < count:
        is_run = read(1)
        length = read(length_bits[read(2)]) + 1
        if is_run:
            values += [read(value_bits)] * length
        else:
            values += [read(value_bits) for _ in range(length)]
    assert len(values) == count
    assert len(bits) - position < 8, "nothing but padding follows"
    return np.array(values, dtype=np.uint8)


def assert_round_trip(mask: PlacedMask) -> None:
    pixels = decode(encode_brush_rle(mask)).reshape(mask.height, mask.width, 4)
    assert np.array_equal(pixels, np.repeat(mask.full()[..., None] * np.uint8(255), 4, axis=2))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_mask_comes_back(data: st.DataObject) -> None:
    height, width = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
    rows, columns = data.draw(st.integers(0, height)), data.draw(st.integers(0, width))
    seed = data.draw(st.integers(0, 2**32 - 1))
    share = data.draw(st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
    window = np.random.default_rng(seed).random((rows, columns)) < share
    top, left = data.draw(st.integers(0, height - rows)), data.draw(st.integers(0, width - columns))
    assert_round_trip(PlacedMask(window, top, left, height, width))


@pytest.mark.parametrize("pixels", [1, 2, 4, 63, 64, 65, 16_383, 16_384, 16_385, 40_000])
def test_runs_about_the_longest(pixels: int) -> None:
    """A run holds 65,536 values, four for each pixel."""
    whole = np.zeros((1, 50_000), dtype=bool)
    whole[0, 5 : 5 + pixels] = True
    assert_round_trip(PlacedMask.whole(whole))


def test_is_short() -> None:
    mask = np.zeros((1000, 1000), dtype=bool)
    mask[200:800, 300:700] = True
    assert len(encode_brush_rle(PlacedMask.whole(mask))) < 6000
