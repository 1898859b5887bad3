"""Tensors as the Open Inference Protocol V2 carries them: in JSON, or in bytes behind the JSON.

Reading is for untrusted bytes: whatever they say of their own sizes is checked before it is
believed, and nothing is made that is larger than the body itself.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidField, MalformedBody

HEADER_LENGTH = "Inference-Header-Content-Length"

Piece = bytes | memoryview
"""A part of a body that is not copied before the body is joined."""


# -- reading ----------------------------------------------------------------------------------


def split_body(body: bytes, header_length: str | None) -> tuple[memoryview, memoryview]:
    """The JSON and the tensors behind it; `header_length` is the header of that name.

    Raises MalformedBody.
    """
    view = memoryview(body)
    if header_length is None:
        return view, view[len(view) :]
    digits = header_length.strip()
    if not (digits.isascii() and digits.isdigit() and len(digits) < 19):
        raise MalformedBody(
            f"{HEADER_LENGTH}: {header_length[:64]!r} is not a number of bytes; send the length of "
            "the JSON that the body begins with"
        )
    length = int(digits)
    if not 0 < length <= len(view):
        raise MalformedBody(
            f"{HEADER_LENGTH} says that {length} bytes of JSON begin the body, which has "
            f"{len(view)} bytes"
        )
    return view[:length], view[length:]


def read_elements(data: memoryview, count: int, field: str) -> list[bytes]:
    """The `count` elements of a BYTES tensor, each behind its length (4 bytes, little-endian).

    Raises InvalidField unless `data` holds exactly these.
    """
    elements: list[bytes] = []
    start = 0
    while len(elements) < count:
        if len(data) - start < 4:
            raise _wrong_size(field, f"ends within the length of element {len(elements)}")
        (length,) = struct.unpack_from("<I", data, start)
        start += 4
        if length > len(data) - start:
            have = len(data) - start
            message = f"element {len(elements)} says that it has {length} bytes, {have} are left"
            raise _wrong_size(field, message)
        elements.append(bytes(data[start : start + length]))
        start += length
    if start != len(data):
        raise _wrong_size(field, f"{len(data) - start} bytes follow the last element")
    return elements


def _wrong_size(field: str, message: str) -> InvalidField:
    remedy = "each element is its length in 4 bytes, little-endian, and then its bytes"
    return InvalidField([(field, f"{message}; {remedy}")])


def read_strings(data: Sequence[Any], count: int, field: str) -> list[str]:
    """The `count` strings of `data`, which may be nested as its shape is.

    Raises InvalidField if there are more or fewer, or something else.
    """
    strings: list[str] = []
    waiting = [iter(data)]
    while waiting:
        for value in waiting[-1]:
            if isinstance(value, list):
                waiting.append(iter(value))
                break
            if not isinstance(value, str):
                raise InvalidField(
                    [
                        (
                            field,
                            f"holds {_kind(value)}; BYTES in JSON are strings, an image in base64",
                        )
                    ]
                )
            strings.append(value)
        else:
            waiting.pop()
    if len(strings) != count:
        message = f"has {len(strings)} elements where the shape says {count}"
        raise InvalidField([(field, message)])
    return strings


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return {bool: "true or false", dict: "an object"}.get(type(value), "a number")


# -- writing ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of an answer; `data` is its bytes or, unless `binary`, its JSON."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    binary: bool
    data: Sequence[Piece]


def mask_tensor(name: str, masks: NDArray[np.uint8], binary: bool) -> Tensor:
    """Masks of zeros and ones, uint8 (n, H, W), C-contiguous."""
    return Tensor(name, "UINT8", masks.shape, binary, [_view(masks) if binary else _digits(masks)])


def score_tensor(name: str, scores: Sequence[float], binary: bool) -> Tensor:
    data = np.asarray(scores, dtype="<f4").tobytes() if binary else _json(list(scores))
    return Tensor(name, "FP32", (len(scores),), binary, [data])


def text_tensor(name: str, texts: Sequence[str], binary: bool) -> Tensor:
    """Texts as BYTES, UTF-8."""
    if not binary:
        return Tensor(name, "BYTES", (len(texts),), False, [_json(list(texts))])
    encoded = [text.encode() for text in texts]
    data = b"".join(struct.pack("<I", len(each)) + each for each in encoded)
    return Tensor(name, "BYTES", (len(texts),), True, [data])


def join_answer(
    members: dict[str, Any], tensors: Sequence[Tensor]
) -> tuple[list[Piece], int | None]:
    """The pieces of an answer with these `members` and `outputs`.

    And the length of its JSON, None if it is nothing else.
    """
    pieces: list[Piece] = [_json(members)[:-1], b',"outputs":[']
    for index, tensor in enumerate(tensors):
        entry: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": tensor.shape,
        }
        if tensor.binary:
            entry["parameters"] = {"binary_data_size": sum(map(len, tensor.data))}
        pieces += [b"," if index else b"", _json(entry)[:-1]]
        if not tensor.binary:
            pieces += [b',"data":', *tensor.data]
        pieces.append(b"}")
    pieces.append(b"]}")
    behind = [piece for tensor in tensors if tensor.binary for piece in tensor.data]
    length = sum(map(len, pieces)) if any(tensor.binary for tensor in tensors) else None
    return pieces + behind, length


def _json(value: object) -> bytes:
    return json.dumps(value, allow_nan=False, separators=(",", ":")).encode()


def _view(array: NDArray[np.uint8]) -> memoryview:
    return array.reshape(-1).data


def _digits(masks: NDArray[np.uint8]) -> memoryview:
    """JSON's flat list of zeros and ones: two bytes for each pixel and no object of Python's."""
    text = np.full(2 * masks.size + 1, ord(","), dtype=np.uint8)
    text[1::2] = masks.reshape(-1)
    text[1::2] += ord("0")
    text[0], text[-1] = ord("["), ord("]")
    return _view(text)
