"""Features in main memory: rows of numpy arrays, for backends that compute on the CPU.

B = rows of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


class ArrayFeatures:
    """One row of a stage's outputs, read-only arrays (1, ...); see `base.Features`."""

    __slots__ = ("arrays", "nbytes")

    def __init__(self, arrays: Sequence[Array]) -> None:
        """Takes the arrays over: they become read-only, and must not be views of larger ones."""
        for array in arrays:
            array.flags.writeable = False
        self.arrays = tuple(arrays)
        self.nbytes = sum(array.nbytes for array in arrays)


def split_rows(outputs: Sequence[Array]) -> list[ArrayFeatures]:
    """Outputs (B, ...) each -> B features.

    Always copies. A view would keep the whole batch alive as long as the last of its rows; and
    what ONNX Runtime gives out lies in its arena, which features that stay would tear to pieces.
    """
    return [
        ArrayFeatures([output[row : row + 1].copy() for output in outputs])
        for row in range(len(outputs[0]))
    ]


def join_rows(features: Sequence[ArrayFeatures]) -> tuple[Array, ...]:
    """The inverse of `split_rows`: N features -> arrays (N, ...); one alone is not copied."""
    if len(features) == 1:
        return features[0].arrays
    return tuple(
        np.concatenate(level) for level in zip(*(row.arrays for row in features), strict=True)
    )
