"""Bytes that almost are what a target reads: damaged, cut, spliced, and lying about their sizes."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Sequence
from random import Random

LONGEST = 200_000  # bytes
_EXTREMES = (0, 1, 2, 3, 7, 8, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000)
_EXTREMES += (0x3FFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
_NUMBERS = (b"0", b"-1", b"1e999", b"NaN", b"0.5", b"4294967296", b"9" * 30, b"null", b"true")
_NUMBER = re.compile(rb"[0-9]+")
_PNG = b"\x89PNG\r\n\x1a\n"

Mutation = Callable[[Random, bytearray], None]


class Mutator:
    """Makes inputs of `seeds`, valid ones, and of `tokens`, which mean something to the target."""

    def __init__(self, seeds: Sequence[bytes], tokens: Sequence[bytes]) -> None:
        self.seeds = seeds
        self._tokens = tokens
        self._mutations: tuple[Mutation, ...] = (
            _flip_bits, _write_number, _write_digits, _cut, _remove, _repeat, _move,
            self._insert_token, self._splice,
        )  # fmt: skip

    def mutate(self, random: Random) -> bytes:
        """A seed with some mutations, mostly few. Depends on nothing but what `random` draws."""
        data = bytearray(random.choice(self.seeds))
        for _ in range(random.choice((0, 1, 1, 1, 2, 2, 3, 5, 9))):
            random.choice(self._mutations)(random, data)
        if data.startswith(_PNG) and random.random() < 0.7:
            mend_png(data)
        return bytes(data[:LONGEST])

    def _insert_token(self, random: Random, data: bytearray) -> None:
        start = _place(random, data)
        end = start + random.choice((0, 0, 1, 4))
        data[start:end] = random.choice(self._tokens)

    def _splice(self, random: Random, data: bytearray) -> None:
        other = random.choice(self.seeds)
        data[_place(random, data) :] = other[random.randrange(len(other)) :]


def _place(random: Random, data: bytearray) -> int:
    """Anywhere, but every second time near the start, where headers are."""
    reach = len(data) if random.random() < 0.5 else min(len(data), 64)
    return random.randint(0, reach)


def _flip_bits(random: Random, data: bytearray) -> None:
    for _ in range(random.choice((1, 1, 2, 8))):
        if data:
            data[_place(random, data) - 1] ^= 1 << random.randrange(8)


def _write_number(random: Random, data: bytearray) -> None:
    """An extreme in a binary field."""
    size, code = random.choice(((1, "B"), (2, "H"), (4, "I")))
    packed = struct.pack(random.choice("<>") + code, random.choice(_EXTREMES) % (1 << 8 * size))
    start = _place(random, data)
    data[start : start + size] = packed


def _write_digits(random: Random, data: bytearray) -> None:
    """An extreme in place of a number in text."""
    found = list(_NUMBER.finditer(data[:4096]))
    if found:
        start, end = random.choice(found).span()
        data[start:end] = random.choice(_NUMBERS)


def _cut(random: Random, data: bytearray) -> None:
    del data[_place(random, data) :]


def _remove(random: Random, data: bytearray) -> None:
    start = _place(random, data)
    del data[start : start + random.choice((1, 2, 4, 16, 100))]


def _repeat(random: Random, data: bytearray) -> None:
    start = _place(random, data)
    piece = bytes(data[start : start + random.choice((1, 2, 8, 50))])
    times = random.choice((1, 2, 10, 1000))
    data[start:start] = (piece * times)[:20_000]


def _move(random: Random, data: bytearray) -> None:
    start = _place(random, data)
    end = start + random.choice((1, 4, 20))
    piece = data[start:end]
    del data[start:end]
    target = _place(random, data)
    data[target:target] = piece


def mend_png(data: bytearray) -> None:
    """True checksums, so that a decoder believes what the chunks say."""
    start = len(_PNG)
    while start + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, start)
        end = start + 8 + length
        if end + 4 > len(data):
            return
        struct.pack_into(">I", data, end, zlib.crc32(data[start + 4 : end]))
        start = end + 4
