"""Label Studio's brush: the run lengths that its editor draws and exports.

The bytes are a bit stream, most significant bit first, in the format of thi.ng's rle-pack: a header
(the number of values in 32 bits, the width of a value less one in 5, four widths of lengths less
one in 4 each), then blocks (1 for a run, which of the four widths in 2 bits, the run's length less
one, its value). The values are those of an RGBA picture, row by row.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from service.placed_mask import PlacedMask

_VALUE_BITS = 8
_LENGTH_BITS = (3, 4, 8, 16)  # what rle-pack writes itself
_CHANNELS = 4
_INSIDE = 255
_LONGEST = 1 << _LENGTH_BITS[-1]


def encode_brush_rle(mask: PlacedMask) -> list[int]:
    """The bytes, 0 to 255 each, of the mask at the photo's size."""
    total = mask.height * mask.width
    across = PlacedMask(mask.window.T, mask.left, mask.top, mask.width, mask.height)
    bounds = np.concatenate([[0], across.changes(), [total]])
    lengths = np.diff(bounds) * _CHANNELS
    values = np.arange(len(lengths)) % 2 * _INSIDE
    lengths, values = _split(lengths[lengths > 0], values[lengths > 0])
    bits = np.concatenate([_header(total * _CHANNELS), _blocks(lengths, values)])
    encoded: list[int] = np.packbits(bits).tolist()
    return encoded


def _split(
    lengths: NDArray[np.int64], values: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Runs of at most `_LONGEST` values."""
    pieces = -(-lengths // _LONGEST)
    split = np.full(pieces.sum(), _LONGEST)
    split[np.cumsum(pieces) - 1] = lengths - (pieces - 1) * _LONGEST
    return split, np.repeat(values, pieces)


def _header(count: int) -> NDArray[np.uint8]:
    fields = [(count, 32), (_VALUE_BITS - 1, 5), *((width - 1, 4) for width in _LENGTH_BITS)]
    text = "".join(f"{value:0{width}b}" for value, width in fields)
    return np.frombuffer(text.encode(), np.uint8) - ord("0")


def _blocks(lengths: NDArray[np.int64], values: NDArray[np.int64]) -> NDArray[np.uint8]:
    """A block for each run, as bits."""
    widths = np.array(_LENGTH_BITS)
    chosen = np.searchsorted(1 << widths, lengths)  # the narrowest that holds length - 1
    length_bits = widths[chosen]
    block = (0b100 | chosen) << length_bits | (lengths - 1)
    block = block << _VALUE_BITS | values
    block_bits = 3 + length_bits + _VALUE_BITS  # 27 at most
    left_aligned = (block << (32 - block_bits)).astype(">u4")
    bits = np.unpackbits(left_aligned.view(np.uint8)).reshape(-1, 32)
    return bits[np.arange(32) < block_bits[:, None]]
