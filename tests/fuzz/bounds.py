"""What may never happen to any input: too much time, too much memory, an error that is not ours."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable
from pathlib import Path

from service.errors import ServiceError

LONGEST = 20.0  # seconds for one input of a few kilobytes, on a machine that has much else to do
MOST_MEMORY = 128 * 2**20  # bytes beyond what the process held before; see targets.MAX_PIXELS
_STATUS = Path("/proc/self/status")
_RESET = Path("/proc/self/clear_refs")


class Finding(Exception):
    """An input does what none may; the text says what."""


class PeakMemory:
    """How far the process's memory rose since this was made. On Linux only; elsewhere 0."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):
            _RESET.write_text("5")  # sets the peak to what is held now
        self._before = _peak()

    @property
    def rise(self) -> int:
        """Bytes."""
        return _peak() - self._before


def _peak() -> int:
    try:
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def check(run: Callable[[bytes], bool | None], data: bytes, memory: PeakMemory) -> bool:
    """Run a target on an input; whether it was valid. Raises Finding, or what the target raised."""
    started = time.monotonic()
    try:
        valid = run(data) is not False
    except ServiceError as error:
        if error.status >= 500:
            raise Finding(f"status {error.status}: {error.detail}") from error
        valid = False
    seconds = time.monotonic() - started
    if seconds > LONGEST:
        raise Finding(f"took {seconds:.1f} s")
    if memory.rise > MOST_MEMORY:
        raise Finding(f"memory rose by {memory.rise // 2**20} MiB")
    return valid
