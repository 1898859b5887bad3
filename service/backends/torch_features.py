"""Features as tensors of one device, and the padding of batches.

B = rows of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class TensorFeatures:
    """One row of a stage's outputs, tensors (1, ...); see `base.Features`.

    torch has no read-only tensors: nothing writes to these, and they share memory with nothing.
    """

    __slots__ = ("nbytes", "tensors")

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Takes the tensors over; each must be all of its storage."""
        self.tensors = tuple(tensors)
        self.nbytes = sum(tensor.nbytes for tensor in tensors)


def split_rows(outputs: Sequence[Tensor], count: int) -> list[TensorFeatures]:
    """The first `count` rows of outputs (B, ...) as features; the others are padding.

    Rows are copies: a view would keep the whole batch alive as long as the last of its rows, and
    the next run of a CUDA graph would overwrite it.
    """
    return [
        TensorFeatures([output[row : row + 1].clone() for output in outputs])
        for row in range(count)
    ]


def join_rows(features: Sequence[TensorFeatures], size: int) -> tuple[Tensor, ...]:
    """N features -> tensors (size, ...), the last row repeated to fill; size >= N."""
    rows = [*features, *[features[-1]] * (size - len(features))]
    return tuple(torch.cat(level) for level in zip(*(row.tensors for row in rows), strict=True))


def pad_rows(batch: Tensor, size: int) -> Tensor:
    """(N, ...) -> (size, ...), the last row repeated to fill; size >= N."""
    missing = size - len(batch)
    if not missing:
        return batch
    return torch.cat([batch, batch[-1:].expand(missing, *batch.shape[1:])])
