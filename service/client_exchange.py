"""One request of the client, without input or output: what to send, whether to send it again.

`conversation` yields requests and pauses; a driver sends, sleeps and hands back what came. So the
blocking and the asynchronous client are the same logic.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
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

ImageLike = str | Path | bytes | Image.Image | NDArray[np.uint8]
"""A file's path, its bytes, a picture, or RGB pixels (H, W, 3)."""

_AGAIN = frozenset({429, 502, 503})
_LATE = 5.0  # seconds after which the answer to a request that timed out there is not awaited


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
        if asked is not None and asked.isdigit():
            return float(asked)
        return float(self.first_pause * 2 ** (attempt - 1) * (0.5 + self.jitter()))


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
    """The bytes of an image file. Raises OSError for paths, ValueError for other pixels."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, str | Path):
        return Path(image).read_bytes()
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(
                f"pixels must be uint8 (H, W, 3), RGB, not {image.dtype} {image.shape}; "
                "convert them"
            )
        image = Image.fromarray(image)
    buffer = BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def headers(api_key: str | None) -> dict[str, str]:
    """What every request carries."""
    return {} if api_key is None else {"Authorization": f"Bearer {api_key}"}


def http_timeout(seconds: float) -> httpx.Timeout:
    """The service is told `seconds`; its 504 may take a little longer to arrive."""
    return httpx.Timeout(seconds + _LATE, connect=min(seconds, 10.0))


@dataclass(frozen=True)
class Send:
    """Send this; the driver hands back an httpx.Response or an httpx.RequestError."""

    arguments: dict[str, Any]


@dataclass(frozen=True)
class Pause:
    """Sleep so many seconds."""

    seconds: float


Step = Send | Pause
Came = httpx.Response | httpx.RequestError | None


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
        if isinstance(came, httpx.Response):
            if came.status_code == 200:
                return _answer(came)
            problem: ServiceRefused | Unreachable = _problem(came)
            if came.status_code not in _AGAIN:
                raise problem
            asked = came.headers.get("Retry-After")
        else:
            problem = Unreachable(f"no answer: {str(came) or type(came).__name__}")
            problem.__cause__ = came
            if isinstance(came, httpx.ReadTimeout | httpx.UnsupportedProtocol):
                raise problem
        pause = retry.pause(attempt, asked)
        if attempt >= retry.attempts or clock() + pause - started > retry.longest:
            raise problem
        yield Pause(pause)


def _answer(response: httpx.Response) -> Segmentation:
    try:
        document = response.json()
    except ValueError as error:
        raise MalformedAnswer(f"the answer is not JSON ({error})") from error
    return parse_answer(document)


def _problem(response: httpx.Response) -> ServiceRefused:
    request_id = response.headers.get("X-Request-Id", "")
    try:
        document = response.json()
        return ServiceRefused(
            response.status_code, str(document["reason"]), str(document["detail"]), request_id
        )
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        # A proxy's own page.
        return ServiceRefused(
            response.status_code, "", response.reason_phrase or "no description", request_id
        )
