"""What the frames of a stream use of their API key's rate: each that begins costs one request."""

from __future__ import annotations

from collections.abc import Callable

from service.key_limits import KeyUse
from service.metrics import ANONYMOUS, Metrics


class FrameAllowance:
    """Of one stream. Without a key, or a key without a rate, every frame may begin at once.

    Frames wait for their turn, first come, first served among the streams of a key; the turn is the
    stream's, so a newer frame that takes another one's place takes its turn, too.
    """

    def __init__(
        self, use: KeyUse | None, metrics: Metrics, longest: float, clock: Callable[[], float]
    ) -> None:
        """`longest`: seconds that a turn may be away; one that is further is refused."""
        self._use = use
        self._metrics = metrics
        self._longest = longest
        self._clock = clock
        self._key = ANONYMOUS if use is None else use.key.name
        self._asked_at = 0.0
        self._turn: float | None = None
        """When the next frame may begin; None until one wants to."""

    def wait(self) -> float:
        """Seconds until the next frame may begin. Raises RateLimited."""
        if self._use is None:
            return 0.0
        now = self._clock()
        if self._turn is None:
            wait = self._use.reserve()
            if wait > self._longest:
                self._use.give_back()
                self._metrics.key_refusals.labels(self._key, "frame").inc()
                raise self._use.too_soon(wait)
            self._asked_at, self._turn = now, now + wait
        return max(0.0, self._turn - now)

    def begin(self, arrived_at: float) -> float | None:
        """A frame that came then begins; seconds that it was held back, None: it was not."""
        self._metrics.key_uses.labels(self._key, "frame").inc()
        turn, self._turn = self._turn, None
        if turn is None or turn <= self._asked_at:
            return None
        return max(0.0, self._clock() - max(self._asked_at, arrived_at))

    def give_up(self) -> None:
        """No frame is going to begin; a turn that was waited for goes back to the key."""
        if self._use is not None and self._turn is not None:
            self._use.give_back()
        self._turn = None
