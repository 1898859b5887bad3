"""COCO's compressed run lengths without the pixels that they stand for. numpy only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FIRST_CHARACTER = 48
_MORE, _NEGATIVE, _BITS = 0x20, 0x10, 5


def mask_changes(rle: Mapping[str, Any]) -> NDArray[np.int64]:
    """Where a mask changes, int64 (K,), rising, as `model.preprocess.letterbox_runs` takes it.

    A run length is written in groups of five bits, the lowest first, in two's complement, as the
    difference to the run before the last (from the fourth run on); each group is a character.

    Args:
        rle: {"size": [H, W], "counts": str}.

    Raises:
        ValueError: if the runs do not add up to H * W pixels.
    """
    groups = np.frombuffer(rle["counts"].encode("ascii"), dtype=np.uint8).astype(np.int64)
    groups -= _FIRST_CHARACTER
    last = np.flatnonzero((groups & _MORE) == 0)
    if not len(last) or last[-1] != len(groups) - 1:
        raise ValueError("a mask's run lengths end in the middle; prepare the store again")
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(groups)) - np.repeat(first, last - first + 1)
    runs = np.add.reduceat((groups & (_MORE - 1)) << (_BITS * place), first)
    runs -= np.where(groups[last] & _NEGATIVE, 1 << (_BITS * (last - first + 1)), 0)
    for start in (1, 2):  # every second run is a difference
        runs[start::2] = np.cumsum(runs[start::2])
    changes = np.cumsum(runs)
    height, width = rle["size"]
    if changes[-1] != height * width or runs.min() < 0:
        raise ValueError(
            f"a mask's run lengths hold {changes[-1]} pixels, its photo {height} x {width}; "
            "prepare the store again"
        )
    return np.asarray(changes[:-1], dtype=np.int64)
