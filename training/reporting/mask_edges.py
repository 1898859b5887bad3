"""Edges around masks, for pictures."""

from __future__ import annotations

from training.metrics import Mask


def grown(mask: Mask, pixels: int) -> Mask:
    """The mask and every pixel within `pixels` steps of it."""
    wider = mask.copy()
    for _ in range(pixels):
        before = wider.copy()
        wider[1:] |= before[:-1]
        wider[:-1] |= before[1:]
        wider[:, 1:] |= before[:, :-1]
        wider[:, :-1] |= before[:, 1:]
    return wider
