"""What `LoadOptions` asks for, as far as several backends read it alike. No torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from service.backends.base import LoadOptions, Precision

_DEVICE = re.compile(r"(auto|cpu)|(cuda|tensorrt)(?::(\d{1,3}))?")


DeviceKind = Literal["auto", "cpu", "cuda", "tensorrt"]


@dataclass(frozen=True, slots=True)
class DeviceChoice:
    """`LoadOptions.device`, taken apart; `index` counts CUDA devices."""

    kind: DeviceKind
    index: int = 0


def device_choice(backend: str, device: str, kinds: Sequence[DeviceKind]) -> DeviceChoice:
    """Read `device`. Raises ValueError unless it is auto or of one of the `kinds` of `backend`."""
    if found := _DEVICE.fullmatch(device):
        for kind in ("auto", *kinds):
            if kind == (found[1] or found[2]):
                return DeviceChoice(kind, int(found[3] or 0))
    raise ValueError(
        f"{backend} cannot run on device {device!r}; choose auto, {' or '.join(kinds)}"
        f"{', such as cuda:1 for the second GPU' if 'cuda' in kinds else ''}"
    )


def supported_precision(
    backend: str, asked: str, supported: Sequence[Precision], automatic: Precision
) -> Precision:
    """`asked`, or `automatic` for "auto". Raises ValueError for one that `backend` cannot do."""
    if asked == "auto":
        return automatic
    for precision in supported:
        if precision == asked:
            return precision
    raise ValueError(
        f"{backend} computes in {' or '.join(supported)}, not in {asked}; choose one of these, "
        "auto, or another backend"
    )


def batch_sizes(options: LoadOptions, otherwise: int, *, padded: bool) -> tuple[int, ...]:
    """The sizes that a backend promises, up to `options.max_batch_size` or `otherwise`.

    With `padded` only these sizes reach the model: powers of two and 1.5 times powers of two, so
    that padding is never more than a third of a batch. Without, any size does, and a backend is
    warm when it has run the smallest and the largest.

    Raises ValueError for a largest size below 1.
    """
    largest = otherwise if options.max_batch_size is None else options.max_batch_size
    if largest < 1:
        raise ValueError(f"the largest batch must be at least 1, not {largest}")
    if not padded:
        return tuple(sorted({1, largest}))
    steps = {size for power in range(largest.bit_length()) for size in (2**power, 3 * 2**power)}
    return tuple(sorted(size for size in steps | {largest} if size <= largest))
