"""The streams of this process: how many are open, and the word that they should end."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from service.errors import StreamsFull
from service.memory_budget import MemoryBudget
from service.metrics import Metrics


class Streams:
    """Belongs to one event loop. `buffered` counts the frames that wait or are worked on."""

    def __init__(self, limit: int, buffered: MemoryBudget, metrics: Metrics) -> None:
        self.buffered = buffered
        self.metrics = metrics
        self.open = 0
        self.draining = asyncio.Event()
        self._limit = limit

    def drain(self) -> None:
        """Let every stream answer what it has begun with, and end."""
        self.draining.set()

    @contextmanager
    def place(self) -> Iterator[None]:
        """Count a stream as open. Raises StreamsFull."""
        if self.open >= self._limit:
            raise StreamsFull(self._limit)
        self.open += 1
        self.metrics.streams_open.inc()
        try:
            yield
        finally:
            self.open -= 1
            self.metrics.streams_open.dec()
