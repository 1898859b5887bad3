"""How long batches take on this device, learnt from those that ran. Standard library only."""

from __future__ import annotations

_NEWEST_WEIGHT = 0.2  # of an exponential moving average
_FIRST_GUESS = 0.1  # seconds an item, until a batch has run


class BatchCosts:
    """Moving averages by size, sizes grouped by powers of two. Not thread-safe."""

    def __init__(self) -> None:
        self._per_item: dict[int, float] = {}

    def observe(self, size: int, seconds: float) -> None:
        """A batch of `size` items took `seconds`."""
        group = _group(size)
        known = self._per_item.setdefault(group, seconds / size)
        self._per_item[group] = known + _NEWEST_WEIGHT * (seconds / size - known)

    def seconds(self, size: int) -> float:
        """What a batch of `size` items is expected to take."""
        if not self._per_item:
            return size * _FIRST_GUESS
        wanted = _group(size)
        nearest = min(self._per_item, key=lambda group: (abs(group - wanted), group))
        return size * self._per_item[nearest]

    def drain_seconds(self, items: int, max_batch_size: int) -> float:
        """What `items` are expected to take in full batches and a remainder."""
        full, rest = divmod(items, max_batch_size)
        return full * self.seconds(max_batch_size) + (self.seconds(rest) if rest else 0.0)


def _group(size: int) -> int:
    return (size - 1).bit_length()
