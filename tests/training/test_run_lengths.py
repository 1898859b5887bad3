"""Compressed run lengths, read without making the mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from training.data.lmdb_store import encode_rle
from training.data.run_lengths import mask_changes

MASKS = npst.arrays(np.bool_, st.tuples(st.integers(1, 40), st.integers(1, 40)))


def _drawn(changes: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    odd = np.searchsorted(changes, np.arange(height * width), side="right") % 2 == 1
    return odd.reshape(width, height).T


@given(mask=MASKS)
def test_changes_draw_the_mask(mask: NDArray[np.bool_]) -> None:
    assert np.array_equal(_drawn(mask_changes(encode_rle(mask)), *mask.shape), mask)


def test_long_runs_and_negative_differences() -> None:
    """Runs of up to a million pixels take several characters, and shrink from one to the next."""
    mask = np.zeros((2000, 1500), dtype=bool)
    mask[:, 100:700] = True
    mask[5:9, 900::7] = True
    assert np.array_equal(_drawn(mask_changes(encode_rle(mask)), *mask.shape), mask)


@pytest.mark.parametrize("counts", ["", "P", "0", "04"])
def test_damaged_run_lengths_are_refused(counts: str) -> None:
    with pytest.raises(ValueError, match="prepare the store again"):
        mask_changes({"size": [10, 10], "counts": counts})
