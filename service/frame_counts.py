"""What became of a stream's frames: for the metrics, and for its line in the log."""

from __future__ import annotations

from service.metrics import Metrics


class FrameCounts:
    """received = answered + dropped + failed, once the stream has ended."""

    def __init__(self, metrics: Metrics) -> None:
        self.told = {"received": 0, "answered": 0, "dropped": 0, "failed": 0}
        self._metrics = metrics

    def received(self) -> int:
        """One more; returns its number, counted from 0."""
        self._metrics.frames_received.inc()
        self.told["received"] += 1
        return self.told["received"] - 1

    def answered(self, seconds: float) -> None:
        """Its masks were sent, so long after it was let in."""
        self._metrics.frames_answered.inc()
        self._metrics.frame_seconds.observe(seconds)
        self.told["answered"] += 1

    def dropped(self) -> None:
        """A newer one took its place."""
        self._metrics.frames_dropped.inc()
        self.told["dropped"] += 1

    def failed(self, reason: str) -> None:
        """It got an error, or nobody was left to get anything; a reason of `service.errors`."""
        self._metrics.frames_failed.labels(reason).inc()
        self.told["failed"] += 1
