"""What is fuzzed: functions of the service that are given bytes of strangers, and all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

from service.image_input import decode_photo
from service.inference_v2.infer_parsing import RawInfer, parse_infer
from service.request_parsing import RawRequest, parse_task
from service.settings import Settings
from service.stream_protocol import parse_configuration
from tests.fuzz import seeds
from tests.fuzz.bounds import Finding
from tests.fuzz.requests import Requests, split_message

MAX_PIXELS = 1_000_000
SETTINGS = Settings(
    backend="fake",
    access_log=False,
    max_pixels=MAX_PIXELS,
    max_body_bytes=1_000_000,
    max_expressions=8,
    image_cache_bytes=1_000_000,
)

Run = Callable[[bytes], bool | None]


@dataclass(frozen=True)
class Target:
    """`running` gives what takes an input.

    Of an invalid one it answers False or raises a member of service.errors below 500.
    """

    seeds: Callable[[], Sequence[bytes]]
    tokens: Callable[[], Sequence[bytes]]
    running: Callable[[], AbstractContextManager[Run]]


def decode_image(data: bytes) -> None:
    """Never more pixels than are allowed, and the same photo in full and scaled down."""
    whole = decode_photo(data, MAX_PIXELS)
    if whole.width * whole.height > MAX_PIXELS or whole.picture.mode != "RGB":
        raise Finding(f"{whole.width} x {whole.height} pixels, mode {whole.picture.mode}")
    small = decode_photo(data, MAX_PIXELS, least=16)
    if (small.width, small.height) != (whole.width, whole.height):
        raise Finding(f"{small.width} x {small.height} scaled down, not as in full")


def parse_segment(data: bytes) -> None:
    """The body of `POST /segment`."""
    message = split_message(data)
    raw = RawRequest(
        body=message.body,
        content_type=message.header("content-type"),
        content_encoding=message.header("content-encoding"),
        query=message.query,
    )
    parse_task(raw, SETTINGS)


def parse_inference(data: bytes) -> None:
    """The body of `/v2/models/.../infer`."""
    message = split_message(data)
    length = message.header("inference-header-content-length") or None
    raw = RawInfer(message.body, message.header("content-encoding"), length)
    reserved = 0

    def reserve(size: int) -> None:
        nonlocal reserved
        reserved += size
        if reserved > 4 * SETTINGS.max_body_bytes:
            raise Finding(f"{reserved:,} bytes were made of {len(data):,}")

    parse_infer(raw, SETTINGS, reserve)


def configure_stream(data: bytes) -> None:
    """The text message of `/stream`."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return  # a WebSocket's text is UTF-8, or the server closes the connection
    parse_configuration(text, SETTINGS)


TARGETS = {
    "image": Target(seeds.images, seeds.image_tokens, lambda: nullcontext(decode_image)),
    "segment": Target(
        seeds.segment_requests, seeds.request_tokens, lambda: nullcontext(parse_segment)
    ),
    "infer": Target(
        seeds.infer_requests, seeds.request_tokens, lambda: nullcontext(parse_inference)
    ),
    "stream": Target(
        seeds.configurations, seeds.request_tokens, lambda: nullcontext(configure_stream)
    ),
    "service": Target(
        lambda: (
            *seeds.segment_requests(),
            *seeds.infer_requests(),
            *seeds.foreign_requests(),
            *seeds.readings(),
        ),
        lambda: (*seeds.request_tokens(), *seeds.image_tokens()),
        lambda: Requests(SETTINGS),
    ),
}
