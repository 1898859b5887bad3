"""The file of API keys: who may use the service, and how much. Standard library only.

A line is `name sha256-hex [rate=5] [burst=10] [concurrent=4]`; the key itself is nowhere. A key is
32 random bytes, so there is nothing to guess and one SHA-256 is enough: slow hashes and salts are
for words that people think of, and would only cost every request their time.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import math
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

logger = logging.getLogger("segvlm.access")

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LOOK_EVERY = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class ApiKey:
    """One line of the file. None: no limit. `rate`: requests a second, `burst`: at once."""

    name: str
    digest: bytes
    rate: float | None = None
    burst: int | None = None
    concurrent: int | None = None


class KeyFileError(ValueError):
    """A file that cannot be used; `faults` has a line for each, never with what stands in it."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


class KeyFile:
    """The keys of a file, read again when it changes; looked at once a second at most, on use.

    Raises KeyFileError if the file cannot be used at first. Later that is logged, and the keys that
    held before go on to hold: a slip in an editor locks nobody out.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._seen = self._signature()
        self._looked_at = clock()
        self._keys = read_keys(path)

    @property
    def names(self) -> list[str]:
        """Of all keys, in the file's order."""
        return [key.name for key in self._keys]

    def find(self, key: str) -> ApiKey | None:
        """Whose key it is. Compares with all, so the time it takes tells nothing."""
        self._look()
        digest = digest_of(key)
        found = None
        for each in self._keys:
            if hmac.compare_digest(each.digest, digest):
                found = each
        return found

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked_at < _LOOK_EVERY:
            return
        self._looked_at = now
        signature = self._signature()
        if signature == self._seen:
            return
        self._seen = signature
        try:
            self._keys = read_keys(self._path)
        except KeyFileError as error:
            logger.error("the keys from before still hold: %s", error)
        else:
            logger.info("%s was read again: %d keys", self._path, len(self._keys))

    def _signature(self) -> tuple[int, int, int] | None:
        """Differs when the file does; None if it cannot be looked at."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


def digest_of(key: str) -> bytes:
    """What the file keeps of a key."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def make_key(name: str) -> tuple[str, str]:
    """A new key and its line for the file. Raises ValueError for a name that is none."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no name for a key: {_NAME_RULE}")
    key = secrets.token_urlsafe(32)
    return key, f"{name} {digest_of(key).hex()}"


def read_keys(path: Path) -> tuple[ApiKey, ...]:
    """The keys of a file, in their order. Raises KeyFileError with every line that is wrong."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise KeyFileError([f"{path} cannot be read: {reason}"]) from error
    keys: list[ApiKey] = []
    faults: list[str] = []
    for number, line in enumerate(lines, start=1):
        words = line.split("#", 1)[0].split()
        try:
            if words:
                keys.append(_parse(words, keys))
        except ValueError as error:
            faults.append(f"{path}, line {number}: {error}")
    if faults:
        raise KeyFileError(faults)
    return tuple(keys)


_NAME_RULE = "1 to 64 letters, digits, dots, dashes and underscores"


def _parse(words: list[str], before: list[ApiKey]) -> ApiKey:
    """One line. The messages never repeat it: somebody may have pasted the key itself."""
    name, digest = words[0], words[1] if len(words) > 1 else ""
    if not _NAME.fullmatch(name):
        raise ValueError(f"the first word must be a name: {_NAME_RULE}")
    if not _DIGEST.fullmatch(digest):
        raise ValueError(
            "the second word must be the key's SHA-256, 64 small hex digits, as "
            "`python -m service key NAME` prints it"
        )
    limits = _limits(words[2:])
    key = ApiKey(
        name,
        bytes.fromhex(digest),
        rate=_rate(limits["rate"]) if "rate" in limits else None,
        burst=_count("burst", limits["burst"]) if "burst" in limits else None,
        concurrent=_count("concurrent", limits["concurrent"]) if "concurrent" in limits else None,
    )
    if key.burst is not None and key.rate is None:
        raise ValueError("burst= needs rate=")
    if key.name in (other.name for other in before):
        raise ValueError(f"another line has the name {key.name}")
    if key.digest in (other.digest for other in before):
        raise ValueError("another line has the same key")
    return key


def _limits(words: list[str]) -> dict[str, str]:
    limits: dict[str, str] = {}
    for word in words:
        name, _, value = word.partition("=")
        if name not in ("rate", "burst", "concurrent"):
            raise ValueError("after the key come rate=, burst= and concurrent= only")
        if name in limits:
            raise ValueError(f"{name}= is there twice")
        limits[name] = value
    return limits


def _rate(value: str) -> float:
    try:
        rate = float(value)
    except ValueError:
        rate = 0.0
    if not (math.isfinite(rate) and rate >= 0.001):
        raise ValueError("rate= must be requests a second, a number, at least 0.001")
    return rate


def _count(name: str, value: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,8}", value):
        raise ValueError(f"{name}= must be a whole number, at least 1")
    return int(value)
