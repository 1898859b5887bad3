"""Notices when something takes too long, from a thread of its own. Standard library only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Watchdog:
    """Calls `on_silence` once, in its own thread, when a `limit` is outstayed; then it ends."""

    def __init__(
        self, on_silence: Callable[[str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._on_silence = on_silence
        self._clock = clock
        self._changed = threading.Condition()
        self._limits: dict[int, tuple[float, str]] = {}
        self._entered = 0
        self._sleeps_until = float("inf")
        self._ended = False

    @contextmanager
    def limit(self, what: str, seconds: float) -> Iterator[None]:
        """The body may take `seconds`; infinite is allowed. `what` ends up in the message."""
        with self._changed:
            self._entered += 1
            key, end = self._entered, self._clock() + seconds
            self._limits[key] = (end, f"{what} took more than {seconds:g} s")
            if end < self._sleeps_until:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                del self._limits[key]

    def watch(self) -> None:
        """Block until a limit is outstayed, or until `end`. The target of a thread."""
        with self._changed:
            while not self._ended:
                end, message = min(self._limits.values(), default=(float("inf"), ""))
                left = end - self._clock()
                if left <= 0:
                    break
                # It may wake for a limit that ended meanwhile, and then looks at those there are.
                self._sleeps_until = end
                self._changed.wait(left if left < threading.TIMEOUT_MAX else None)
            else:
                return
        self._on_silence(message)

    def end(self) -> None:
        """Watch no more."""
        with self._changed:
            self._ended = True
            self._changed.notify()
