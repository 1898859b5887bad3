"""The sum of what clients have sent and the service still holds, requests and streams together."""

from __future__ import annotations

from service.errors import QueueFull


class BufferedBytes:
    """Counts up to `limit` bytes. For one event loop."""

    def __init__(self, limit: int) -> None:
        self.held = 0
        self._limit = limit

    def take(self, size: int) -> None:
        """Hold `size` bytes more. Raises QueueFull if that is beyond the limit."""
        if self.held + size > self._limit:
            raise QueueFull(retry_after=1.0)
        self.held += size

    def give_back(self, size: int) -> None:
        """Hold `size` bytes less."""
        self.held -= size
