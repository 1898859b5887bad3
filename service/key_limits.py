"""How much each API key may use: requests a second with a burst, and requests at a time.

Told in the headers of draft-ietf-httpapi-ratelimit-headers-11. In one process: behind a balancer,
each replica counts for itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from service.api_keys import ApiKey
from service.errors import RateLimited

_ROUNDING = 1e-6  # of a token: who waits as long as told must get it
_BUSY_RETRY = 1.0  # seconds; when a running request ends is not known


class TokenBucket:
    """`burst` tokens at most, `rate` new ones a second; a request takes one."""

    def __init__(self, rate: float, burst: int, clock: Callable[[], float]) -> None:
        self.rate = rate
        self.burst = burst
        self._clock = clock
        self._tokens = float(burst)
        self._filled_at = clock()

    def take(self) -> bool:
        """Take a token if there is one."""
        self._fill()
        if self._tokens < 1 - _ROUNDING:
            return False
        self._tokens = max(0.0, self._tokens - 1)
        return True

    def reserve(self) -> float:
        """Take a token that is there or will be; seconds until then."""
        self._fill()
        self._tokens -= 1
        return 0.0 if self._tokens >= -_ROUNDING else -self._tokens / self.rate

    def give_back(self) -> None:
        """Undo a `reserve`."""
        self._tokens = min(float(self.burst), self._tokens + 1)

    def left(self) -> tuple[int, float]:
        """Whole tokens that are there, and seconds until there is one more."""
        self._fill()
        whole = max(0, math.floor(self._tokens + _ROUNDING))
        return whole, (whole + 1 - self._tokens) / self.rate

    def _fill(self) -> None:
        now = self._clock()
        grown = self._tokens + (now - self._filled_at) * self.rate
        self._tokens = min(float(self.burst), grown)
        self._filled_at = now


class KeyUse:
    """What one key uses now."""

    def __init__(self, key: ApiKey, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.running = 0
        self.limit(key)

    def limit(self, key: ApiKey) -> None:
        """From now on as `key` says, beginning with a full bucket; what runs still counts."""
        self.key = key
        self._bucket: TokenBucket | None = None
        if key.rate is not None:
            self._bucket = TokenBucket(key.rate, key.burst or math.ceil(key.rate), self._clock)

    def enter(self) -> None:
        """Begin a request, which `running` then counts. Raises RateLimited."""
        if self.key.concurrent is not None and self.running >= self.key.concurrent:
            raise RateLimited(
                f"{self.key.concurrent} requests of this API key are running, which is as many as "
                "may; wait for one to end",
                _BUSY_RETRY,
            )
        if self._bucket is not None and not self._bucket.take():
            raise RateLimited(
                f"this API key may send {self._bucket.rate:g} requests a second, "
                f"{self._bucket.burst} at once; try again after Retry-After",
                self._bucket.left()[1],
            )
        self.running += 1

    def reserve(self) -> float:
        """Count a frame of a stream as a request; seconds until it may begin, in turn."""
        return 0.0 if self._bucket is None else self._bucket.reserve()

    def give_back(self) -> None:
        """A frame for which `reserve` was called is not to begin."""
        if self._bucket is not None:
            self._bucket.give_back()

    def too_soon(self, wait: float) -> RateLimited:
        """Why a frame is refused that would wait so long for its turn."""
        assert self._bucket is not None
        return RateLimited(
            f"this API key may send {self._bucket.rate:g} requests a second, and each frame counts "
            "as one; its turn would come too late",
            wait,
        )

    def headers(self) -> dict[str, str]:
        """What the key may, and has left. `q` requests in any `w` seconds are always let in."""
        policies, left = [], []
        if self._bucket is not None:
            window = max(1, math.ceil(self._bucket.burst / self._bucket.rate))
            tokens, seconds = self._bucket.left()
            policies.append(f'"rate";q={self._bucket.burst};w={window}')
            left.append(f'"rate";r={tokens};t={max(1, math.ceil(seconds))}')
        if self.key.concurrent is not None:
            policies.append(f'"concurrent";q={self.key.concurrent};qu="concurrent-requests"')
            left.append(f'"concurrent";r={max(0, self.key.concurrent - self.running)}')
        if not policies:
            return {}
        return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(left)}


class KeyUses:
    """The use of all keys, by name."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._uses: dict[str, KeyUse] = {}

    def of(self, key: ApiKey) -> KeyUse:
        """The use of a key."""
        use = self._uses.get(key.name)
        if use is None:
            use = self._uses[key.name] = KeyUse(key, self._clock)
        elif use.key != key:  # the file has changed
            use.limit(key)
        return use

    @contextmanager
    def entered(self, key: ApiKey) -> Iterator[None]:
        """While a request of `key` runs. Raises RateLimited."""
        use = self.of(key)
        use.enter()
        try:
            yield
        finally:
            use.running -= 1
