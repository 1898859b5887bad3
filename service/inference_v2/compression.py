"""Compressed bodies, in both directions: gzip and deflate (RFC 9110, section 8.4.1)."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable
from typing import Literal

from service.errors import MalformedBody, TooLarge, UnsupportedMedia

Coding = Literal["gzip", "deflate"]

_WINDOW: dict[Coding, int] = {"gzip": 31, "deflate": 15}  # zlib's wbits; deflate is zlib's format
_CHUNK = 256 * 1024  # bytes of a piece, before and after
_LEVEL = 1  # masks shrink a hundredfold even so
_WORTH_IT = 1024  # bytes; below, compressing costs more than it saves
_ACCEPTED = re.compile(r"\s*([\w*.+-]+)\s*(?:;\s*q\s*=\s*([01](?:\.[0-9]{0,3})?)\s*)?", re.ASCII)


def inflate(body: bytes, encoding: str, limit: int, reserve: Callable[[int], None]) -> bytes:
    """The body as it was before its Content-Encoding `encoding`.

    `reserve` is told of the bytes of every piece, and may raise. Raises UnsupportedMedia,
    MalformedBody, and TooLarge as soon as more than `limit` bytes came out: nothing further is
    inflated.
    """
    name = encoding.strip().lower()
    if name in ("", "identity"):
        return body
    if name not in _WINDOW:
        raise UnsupportedMedia(
            f"Content-Encoding {encoding[:64]!r} is not supported; send gzip, deflate or the body "
            "as it is"
        )
    inflater = zlib.decompressobj(_WINDOW[name])
    pieces: list[bytes] = []
    size, fed, waiting = 0, 0, b""
    try:
        while not inflater.eof:
            if not waiting:
                waiting = body[fed : fed + _CHUNK]
                fed += len(waiting)
            piece = inflater.decompress(waiting, _CHUNK)
            waiting = inflater.unconsumed_tail
            if not piece and not waiting and fed == len(body):  # it wants more than there is
                break
            size += len(piece)
            if size > limit:
                raise TooLarge(
                    f"the request's body inflates to more than {limit:,} bytes; send a smaller "
                    "image (SEGVLM_MAX_BODY_BYTES sets the limit)",
                    limit,
                )
            reserve(len(piece))
            pieces.append(piece)
    except zlib.error as error:
        raise MalformedBody(f"the body is not {name} ({error}); {_REMEDY}") from error
    if not inflater.eof:
        raise MalformedBody(f"the {name} body is cut short; {_REMEDY}")
    if inflater.unused_data or fed < len(body):
        raise MalformedBody(f"something follows the {name} body; {_REMEDY}")
    return b"".join(pieces)


_REMEDY = "compress the whole body once, or send it as it is"


def choose_coding(accept_encoding: str) -> Coding | None:
    """What an answer to this Accept-Encoding is compressed with; None if with nothing.

    What cannot be read counts as not accepted.
    """
    weights: dict[str, float] = {}
    for part in accept_encoding.lower().split(","):
        if found := _ACCEPTED.fullmatch(part):
            weights[found[1]] = float(found[2] or 1)
    codings: tuple[Coding, ...] = ("gzip", "deflate")
    best = max(codings, key=lambda coding: weights.get(coding, 0))
    return best if weights.get(best, 0) > 0 else None


def compress(pieces: Iterable[bytes | memoryview], coding: Coding) -> bytes:
    """The pieces as one compressed body."""
    deflater = zlib.compressobj(_LEVEL, zlib.DEFLATED, _WINDOW[coding])
    return b"".join([*map(deflater.compress, pieces), deflater.flush()])


def is_worth_it(size: int) -> bool:
    """Whether a body of `size` bytes should be compressed for who accepts it."""
    return size >= _WORTH_IT
