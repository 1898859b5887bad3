"""What bodies may take of the memory, all of them together.

A request's body, what it inflates to and its answer count until the answer is sent, so neither a
slow reader nor a small compressed body can hold more than the limit allows.
"""

from __future__ import annotations

import threading

from service.errors import ClientGone, QueueFull


class MemoryBudget:
    """`limit` bytes, shared by requests in any thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes taken and not given back."""
        return self._used

    def take(self, size: int) -> None:
        """Raises QueueFull, and takes nothing, if `size` bytes are not left."""
        with self._lock:
            if self._used + size > self._limit:
                raise QueueFull(retry_after=1.0)
            self._used += size

    def give_back(self, size: int) -> None:
        with self._lock:
            self._used -= size


class MemoryShare:
    """What one request has taken, from whichever thread works for it."""

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._taken = 0
        self._ended = False
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """`size` more bytes. Raises QueueFull, and ClientGone in a thread that the end overtook."""
        with self._lock:
            if self._ended:
                raise ClientGone()
            self._budget.take(size)
            self._taken += size

    def release(self) -> None:
        """Give everything back: the request has ended."""
        with self._lock:
            self._ended = True
            self._budget.give_back(self._taken)
