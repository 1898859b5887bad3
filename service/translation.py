"""What a protocol adds to the pipeline: how its request is read and how its answer is written.

A translation is made for one request. `read` and `write` are CPU work on untrusted bytes and whole
images; the pipeline calls each once, in its thread pool, `read` first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from PIL import Image

from model.preprocess import Letterbox
from service.answers import FoundMask
from service.backends.base import ModelSpec
from service.request_parsing import SegmentTask
from service.schemas import Timings


@dataclass(frozen=True, slots=True)
class Payload:
    """The body of a successful answer."""

    body: bytes
    media_type: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Findings:
    """What the model found.

    masks: one for each expression, in order, made when it is asked for: a large image then costs
    the memory of one. May raise TimeoutError, which the pipeline answers. timings: up to its first call.
    photo: the image again, RGB in its full size; keeping it while it waits would cost far more.
    """

    spec: ModelSpec
    task: SegmentTask
    geometry: Letterbox
    masks: Iterator[FoundMask]
    timings: Callable[[], Timings]
    photo: Callable[[], Image.Image]


class Translation(Protocol):
    """One request in a protocol's terms."""

    def read(self) -> SegmentTask:
        """The task. Raises members of `service.errors`."""
        ...

    def write(self, found: Findings) -> Payload:
        """The answer. Raises members of `service.errors`."""
        ...
