"""Rows of numpy arrays: copied where that matters, and only there."""

from __future__ import annotations

import numpy as np
import pytest

from service.backends.arrays import ArrayFeatures, join_rows, split_rows


def outputs(rows: int) -> list[np.ndarray]:
    return [
        np.arange(rows * 6, dtype=np.float32).reshape(rows, 2, 3),
        np.arange(rows, dtype=np.int64).reshape(rows, 1) % 2 == 0,
    ]


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_joined_rows_are_what_was_split(rows: int) -> None:
    joined = join_rows(split_rows(outputs(rows)))
    for array, expected in zip(joined, outputs(rows), strict=True):
        np.testing.assert_array_equal(array, expected)
        assert array.dtype == expected.dtype


def test_one_row_is_joined_without_a_copy() -> None:
    (features,) = split_rows(outputs(1))
    assert join_rows([features]) is features.arrays


@pytest.mark.parametrize("rows", [1, 3])
def test_rows_own_their_memory(rows: int) -> None:
    """Also a single row: an arena must not be held by what stays."""
    made = outputs(rows)
    for features in split_rows(made):
        assert all(array.base is None for array in features.arrays)
        assert not any(np.shares_memory(a, b) for a, b in zip(features.arrays, made, strict=True))
        assert features.nbytes == 6 * 4 + 1


def test_features_cannot_be_written() -> None:
    features = ArrayFeatures(outputs(1))
    with pytest.raises(ValueError, match="read-only"):
        features.arrays[0][0, 0, 0] = 1
    with pytest.raises(AttributeError):
        features.more = 1  # type: ignore[attr-defined]
