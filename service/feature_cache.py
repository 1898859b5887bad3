"""A least-recently-used cache that is bounded in bytes, not in entries."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class FeatureCache(Generic[Value]):
    """Keys are content hashes, so an entry never goes stale; values must never be mutated.

    A value larger than the whole cache is not kept; `max_bytes` 0 keeps nothing. Thread-safe.
    """

    def __init__(self, max_bytes: int, size_of: Callable[[Value], int]) -> None:
        self._max_bytes = max_bytes
        self._size_of = size_of
        self._entries: OrderedDict[bytes, tuple[Value, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    @property
    def bytes_held(self) -> int:
        """The sum of the sizes of what is held now."""
        return self._bytes

    def get(self, key: bytes) -> Value | None:
        """The value, which becomes the most recently used; None if it is not here."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            return entry[0]

    def put(self, key: bytes, value: Value) -> None:
        """Keep `value`, dropping the least recently used until it fits."""
        size = self._size_of(value)
        if size > self._max_bytes:
            return
        with self._lock:
            self._drop(key)
            self._entries[key] = (value, size)
            self._bytes += size
            while self._bytes > self._max_bytes:
                _, (_, dropped) = self._entries.popitem(last=False)
                self._bytes -= dropped

    def discard(self, key: bytes) -> None:
        """Forget the value, if it is here."""
        with self._lock:
            self._drop(key)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry[1]
