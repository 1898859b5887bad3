"""A pickle of plain data loads, whatever wrote it; one that names anything is refused unrun."""

from __future__ import annotations

import collections
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest

from training.data.restricted_pickle import load_plain_pickle

PLAIN = [{"ref_id": 7, "sent": "café", "ids": [1, -2, 2**40], "box": (1.5, None, True)}, {}, []]


def python2(value: Any, protocol: int) -> bytes:
    """What Python 2's cPickle writes: its `str` as 8-bit strings, which Python 3 cannot write."""
    return (b"\x80\x02" if protocol == 2 else b"") + _python2(value, protocol) + b"."


def _python2(value: Any, protocol: int) -> bytes:
    def inner(items: Any) -> list[bytes]:
        return [_python2(item, protocol) for item in items]

    if isinstance(value, dict):
        pairs = [key + item for key, item in zip(inner(value), inner(value.values()), strict=True)]
        if protocol == 0:
            return b"(d" + b"".join(pair + b"s" for pair in pairs)
        return b"}(" + b"".join(pairs) + b"u"
    if isinstance(value, list):
        if protocol == 0:
            return b"(l" + b"".join(item + b"a" for item in inner(value))
        return b"](" + b"".join(inner(value)) + b"e"
    if isinstance(value, int):
        return b"I%d\n" % value if protocol == 0 else b"J" + struct.pack("<i", value)
    if isinstance(value, bytes):
        if protocol == 0:
            return b"S" + repr(value)[1:].encode() + b"\n"
        return b"U" + bytes([len(value)]) + value
    return _python2(value.encode(), protocol)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data_of_any_protocol(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "plain.p"
    path.write_bytes(pickle.dumps(PLAIN, protocol))
    assert load_plain_pickle(path) == PLAIN


@pytest.mark.parametrize("protocol", [0, 2])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_strings_of_python_2(tmp_path: Path, protocol: int, encoding: str) -> None:
    path = tmp_path / "old.p"
    path.write_bytes(python2([{"sent": "le café".encode(encoding), "sent_id": 4}], protocol))
    assert load_plain_pickle(path) == [{"sent": "le café", "sent_id": 4}]


class _Malicious:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_does_not_run(tmp_path: Path, protocol: int) -> None:
    path, ran = tmp_path / "refs.p", tmp_path / "ran"
    path.write_bytes(pickle.dumps([_Malicious(f"touch {ran}")], protocol))
    with pytest.raises(ValueError, match=rf"{os.system.__module__}\.system"):
        load_plain_pickle(path)
    assert not ran.exists()
    pickle.loads(path.read_bytes())
    assert ran.exists()  # so it was malicious


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (b"(S'true'\nios\nsystem\n.", "os.system"),  # INST
        (b"(cos\nsystem\nS'true'\no.", "os.system"),  # OBJ
        (b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval"),  # GLOBAL, REDUCE
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),  # STACK_GLOBAL
        (b"Psomewhere\n.", "outside object 'somewhere'"),  # PERSID
        (pickle.dumps(collections.OrderedDict()), "collections.OrderedDict"),  # harmless, refused
        (pickle.dumps({1, 2}, 2), "__builtin__.set"),
    ],
)
def test_every_way_to_name_something_is_refused(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=named.replace(".", r"\.")) as refused:
        load_plain_pickle(path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", pickle.dumps(PLAIN)[:-3], b"\x80\x02\x82\x01.", b"("]
)
def test_a_broken_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="no readable pickle"):
        load_plain_pickle(path)
    with pytest.raises(ValueError, match="no file at"):
        load_plain_pickle(tmp_path / "none.p")
