"""Compressed bodies: both codings both ways, and nothing inflates further than it may."""

from __future__ import annotations

import contextlib
import gzip
import random
import tracemalloc
import zlib
from typing import get_args

import pytest
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.errors import MalformedBody, QueueFull, TooLarge, UnsupportedMedia
from service.inference_v2.compression import Coding, choose_coding, compress, inflate

CODINGS = get_args(Coding)
LIMIT = 1_000_000


def ignore(size: int) -> None:
    """A reserve without an end."""


@pytest.mark.parametrize("coding", CODINGS)
@given(pieces=st.lists(st.binary(max_size=3000), max_size=5))
@example(pieces=[random.Random(7).randbytes(900_000)])
@example(pieces=[bytes(900_000)])
@hypothesis_settings(deadline=None)
def test_what_is_compressed_inflates(coding: Coding, pieces: list[bytes]) -> None:
    reserved: list[int] = []
    whole = b"".join(pieces)
    packed = compress(pieces, coding)
    assert inflate(packed, f" {coding.upper()} ", LIMIT, reserved.append) == whole
    assert sum(reserved) == len(whole)
    other = {"gzip": gzip.decompress, "deflate": zlib.decompress}[coding]
    assert other(packed) == whole


def test_a_body_as_it_is() -> None:
    assert inflate(b"{}", "", LIMIT, ignore) == b"{}"
    assert inflate(b"{}", "identity", LIMIT, ignore) == b"{}"


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1])
def test_the_limit_is_exact(coding: Coding, size: int) -> None:
    packed = compress([bytes(size)], coding)
    if size <= LIMIT:
        assert len(inflate(packed, coding, LIMIT, ignore)) == size
        return
    with pytest.raises(TooLarge, match=f"{LIMIT:,}"):
        inflate(packed, coding, LIMIT, ignore)


@pytest.mark.parametrize("coding", CODINGS)
def test_a_bomb_is_not_inflated(coding: Coding) -> None:
    """200 MB in 200 kB cost the limit and a little, not 200 MB."""
    bomb = compress((bytes(1_000_000) for _ in range(200)), coding)
    assert len(bomb) < LIMIT
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge):
            inflate(bomb, coding, LIMIT, ignore)
        assert tracemalloc.get_traced_memory()[1] < 3 * LIMIT
    finally:
        tracemalloc.stop()


def test_what_is_reserved_stops_it() -> None:
    def full(size: int) -> None:
        raise QueueFull(retry_after=1.0)

    with pytest.raises(QueueFull):
        inflate(compress([bytes(10)], "gzip"), "gzip", LIMIT, full)


@pytest.mark.parametrize("coding", CODINGS)
@given(data=st.data())
@hypothesis_settings(deadline=None)
def test_half_a_body(coding: Coding, data: st.DataObject) -> None:
    packed = compress([b"a body " * 100], coding)
    cut = data.draw(st.integers(0, len(packed) - 1))
    with pytest.raises(MalformedBody, match="cut short"):
        inflate(packed[:cut], coding, LIMIT, ignore)


@pytest.mark.parametrize("coding", CODINGS)
def test_something_behind_the_body(coding: Coding) -> None:
    whole = random.Random(7).randbytes(300_000)
    for packed in (compress([b"{}"], coding), compress([whole], coding)):
        for behind in (b"x", bytes(300_000), packed):
            with pytest.raises(MalformedBody, match="follows"):
                inflate(packed + behind, coding, LIMIT, ignore)


@pytest.mark.parametrize("coding", CODINGS)
@given(body=st.binary(max_size=200))
def test_any_bytes(coding: Coding, body: bytes) -> None:
    with contextlib.suppress(MalformedBody):
        inflate(body, coding, LIMIT, ignore)


def test_the_wrong_coding() -> None:
    with pytest.raises(MalformedBody, match="not deflate"):
        inflate(gzip.compress(b"{}"), "deflate", LIMIT, ignore)
    with pytest.raises(UnsupportedMedia, match="'br'"):
        inflate(b"", "br", LIMIT, ignore)
    with pytest.raises(UnsupportedMedia, match="'gzip, gzip'"):
        inflate(b"", "gzip, gzip", LIMIT, ignore)


@pytest.mark.parametrize(
    ("accept", "coding"),
    [
        ("", None),
        ("identity", None),
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", "gzip"),
        ("GZIP;q=0.5, deflate;q=0.8", "deflate"),
        ("gzip;q=0, deflate", "deflate"),
        ("gzip;q=0", None),
        ("br, *;q=0.1", None),
        ("gzip;q=x", None),
        (";;,,gzip", "gzip"),
    ],
)
def test_what_the_client_accepts(accept: str, coding: str | None) -> None:
    assert choose_coding(accept) == coding


@given(st.text(max_size=30))
def test_any_accept_encoding(accept: str) -> None:
    assert choose_coding(accept) in (None, *CODINGS)
