"""When to make the next frame ready: late, so that it is new, but before the model is free."""

from __future__ import annotations

from collections import deque

_REMEMBERED = 8  # frames; what the machine did before says little of now
_MARGIN = 1.5  # of the time that a frame takes to get ready
_HANDOVER = 0.002  # seconds between threads, and the event loop's clock ticks in milliseconds


class Pace:
    """Learns from each answered frame of a stream. Times are of one clock, in seconds.

    A frame chosen too late leaves the model idle, one chosen too early is older than it need be.
    The first costs everybody, the second one caller a little, so of the last frames the shortest
    time at the model and the longest preparation count.
    """

    def __init__(self) -> None:
        self._preparing: deque[float] = deque(maxlen=_REMEMBERED)
        self._at_model: deque[float] = deque(maxlen=_REMEMBERED)
        self._model_left_at = float("-inf")

    def observe(self, launched_at: float, prepared: float, left_at: float) -> None:
        """A frame was launched, took `prepared` seconds to be ready and left the model."""
        begun = max(launched_at + prepared, self._model_left_at)
        self._preparing.append(prepared)
        self._at_model.append(max(0.0, left_at - begun))
        self._model_left_at = left_at

    def next_launch(self, launched_at: float) -> float | None:
        """When to launch a frame behind one launched at that time; None: nothing is known yet."""
        if not self._at_model:
            return None
        prepare = max(self._preparing)
        begun = max(launched_at + prepare, self._model_left_at)
        return begun + min(self._at_model) - _MARGIN * prepare - _HANDOVER
