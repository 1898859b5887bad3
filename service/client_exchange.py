"""One request of the client, without input or output: what to send, whether to send it again.

`conversation` yields requests and pauses; a driver sends, sleeps and hands back what came. So the
blocking and the asynchronous client are the same logic.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.client_results import (
    MalformedAnswer,
    Segmentation,
    ServiceRefused,
    Unreachable,
    parse_answer,
)

ImageLike = str | Path | bytes | bytearray | memoryview | Image.Image | NDArray[np.uint8]
"""A file's path, its bytes, a picture, or pixels: (H, W) grey, (H, W, 3) RGB, (H, W, 4) RGBA."""

_AGAIN = frozenset({429, 502, 503})
_LATE = 5.0  # seconds after which the answer to a request that timed out there is not awaited
_PNG_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA", "I;16"})


@dataclass(frozen=True)
class Retry:
    """When a request is sent again: after 429, 502, 503 and broken connections.

    `Retry-After` is honoured; without one the pause doubles from `first_pause` seconds, give or
    take a half, so that many clients do not come back together. It is given up after `attempts`, or
    when the next pause would end later than `longest` seconds after the first try.
    """

    attempts: int = 5
    longest: float = 60.0
    first_pause: float = 0.25
    jitter: Callable[[], float] = field(default=random.random, repr=False)

    def pause(self, attempt: int, asked: str | None) -> float:
        """Seconds to wait after the failed try number `attempt`, from 1."""
        if asked is not None and (seconds := _seconds(asked)) is not None:
            return seconds
        return float(self.first_pause * 2 ** (attempt - 1) * (0.5 + self.jitter()))


def _seconds(retry_after: str) -> float | None:
    """A Retry-After, which may be a date, as seconds from now; None if it is neither."""
    text = retry_after.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        when = parsedate_to_datetime(text)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())


@dataclass(frozen=True)
class Question:
    """A request's body and what it asks for."""

    image: bytes
    expressions: Sequence[str]
    threshold: float | None = None
    include_probability: bool = False

    def form(self) -> dict[str, Any]:
        """Arguments of httpx's `request`."""
        data: dict[str, Any] = {"expression": list(self.expressions), "format": "rle"}
        if self.threshold is not None:
            data["threshold"] = repr(float(self.threshold))
        if self.include_probability:
            data["include_probability"] = "true"
        return {"data": data, "files": {"image": ("image", self.image)}}


def image_bytes(image: ImageLike) -> bytes:
    """The bytes of an image file. Raises OSError for paths, ValueError for what is no image."""
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    if isinstance(image, np.ndarray):
        colours = image.shape[2] if image.ndim == 3 else 1
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or colours not in (1, 3, 4):
            raise ValueError(
                "pixels must be uint8, (H, W), (H, W, 3) RGB or (H, W, 4) RGBA, not "
                f"{image.dtype} {image.shape}; convert them"
            )
        image = Image.fromarray(image[..., 0] if image.shape[2:] == (1,) else image)
    if not isinstance(image, Image.Image):
        raise ValueError(
            f"an image is a path, a file's bytes, a picture or pixels, not {type(image).__name__}"
        )
    if image.mode not in _PNG_MODES:
        image = image.convert("RGB")
    buffer = BytesIO()
    # Without EXIF: its orientation would turn masks against the picture that lies in memory.
    image.save(buffer, "PNG", compress_level=1, exif=b"")
    return buffer.getvalue()


def checked_url(url: str) -> str:
    """Raises ValueError for what is no address of a service."""
    if not re.match(r"https?://[^/]", url):
        raise ValueError(f"{url!r} is no address of a service, such as http://localhost:8000")
    return url


def headers(api_key: str | None) -> dict[str, str]:
    """What every request carries."""
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def http_timeout(seconds: float) -> httpx.Timeout:
    """The service is told `seconds`; its 504 may take a little longer to arrive."""
    return httpx.Timeout(answer_seconds(seconds), connect=min(seconds, 10.0))


def answer_seconds(seconds: float) -> float:
    """After which one try ends, though bytes of its answer still trickle in."""
    return seconds + _LATE


@dataclass(frozen=True)
class Reply:
    """An answer that has been read."""

    status: int
    phrase: str
    headers: httpx.Headers
    body: bytes

    @classmethod
    def of(cls, response: httpx.Response, body: bytes) -> Reply:
        """`body`: what was read of it."""
        return cls(response.status_code, response.reason_phrase, response.headers, body)


@dataclass(frozen=True)
class Send:
    """Send this; the driver hands back a Reply or an httpx.RequestError."""

    arguments: dict[str, Any]


@dataclass(frozen=True)
class Pause:
    """Sleep so many seconds."""

    seconds: float


Step = Send | Pause
Came = Reply | httpx.RequestError | None


def conversation(
    question: Question, timeout: float, retry: Retry, clock: Callable[[], float]
) -> Generator[Step, Came, Segmentation]:
    """Ask until there is an answer or no use. Raises members of SegVLMError."""
    arguments = {**question.form(), "headers": {"X-Request-Timeout": f"{timeout:.3f}"}}
    started = clock()
    attempt = 0
    while True:
        attempt += 1
        came = yield Send(arguments)
        assert came is not None
        asked = None
        if isinstance(came, Reply):
            if came.status == 200:
                return _answer(came)
            problem: ServiceRefused | Unreachable = _problem(came)
            if came.status not in _AGAIN:
                raise problem
            asked = came.headers.get("Retry-After")
        elif isinstance(came, httpx.DecodingError):
            raise MalformedAnswer(f"the answer cannot be unpacked ({came})") from came
        else:
            problem = Unreachable(f"no answer: {str(came) or type(came).__name__}")
            problem.__cause__ = came
            if isinstance(came, httpx.ReadTimeout | httpx.UnsupportedProtocol):
                raise problem
        pause = retry.pause(attempt, asked)
        if attempt >= retry.attempts or clock() + pause - started > retry.longest:
            raise problem
        yield Pause(pause)


def _answer(reply: Reply) -> Segmentation:
    try:
        document = json.loads(reply.body)
    except (ValueError, RecursionError) as error:
        raise MalformedAnswer(f"the answer is not JSON ({error})") from error
    return parse_answer(document)


def _problem(reply: Reply) -> ServiceRefused:
    request_id = reply.headers.get("X-Request-Id", "")
    try:
        document = json.loads(reply.body)
        reason, detail = str(document["reason"]), str(document["detail"])
    except (ValueError, LookupError, TypeError, RecursionError):  # a proxy's own page
        reason, detail = "", reply.phrase or "no description"
    return ServiceRefused(reply.status, reason, detail, request_id)
