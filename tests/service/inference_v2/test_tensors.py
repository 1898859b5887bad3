"""Tensors there and back, and sizes that lie."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidField, MalformedBody
from service.inference_v2 import tensors


def bytes_tensor(elements: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(each)) + each for each in elements)


@given(st.lists(st.binary(max_size=50), max_size=8))
def test_bytes_there_and_back(elements: list[bytes]) -> None:
    data = memoryview(bytes_tensor(elements))
    assert tensors.read_elements(data, len(elements), "image") == elements


@given(st.lists(st.binary(max_size=20), min_size=1, max_size=5), st.data())
def test_every_truncation_is_noticed(elements: list[bytes], data: st.DataObject) -> None:
    whole = bytes_tensor(elements)
    cut = data.draw(st.integers(0, len(whole) - 1))
    with pytest.raises(InvalidField):
        tensors.read_elements(memoryview(whole[:cut]), len(elements), "image")


@given(st.binary(max_size=100), st.integers(0, 10))
def test_any_bytes_are_elements_or_refused(data: bytes, count: int) -> None:
    try:
        elements = tensors.read_elements(memoryview(data), count, "image")
    except InvalidField:
        return
    assert bytes_tensor(elements) == data


def test_a_length_that_lies() -> None:
    with pytest.raises(InvalidField, match="says that it has 4294967295 bytes, 3 are left"):
        tensors.read_elements(memoryview(b"\xff\xff\xff\xffabc"), 1, "image")
    with pytest.raises(InvalidField, match="2 bytes follow"):
        tensors.read_elements(memoryview(bytes_tensor([b"a"]) + b"bc"), 1, "image")


@pytest.mark.parametrize(
    ("header", "parts"),
    [(None, (b"{}abc", b"")), ("2", (b"{}", b"abc")), (" 5 ", (b"{}abc", b""))],
)
def test_the_json_is_split_off(header: str | None, parts: tuple[bytes, bytes]) -> None:
    assert tuple(map(bytes, tensors.split_body(b"{}abc", header))) == parts


@pytest.mark.parametrize("header", ["", "0", "6", "-1", "1e1", "0x2", "٣", "9" * 30, "2, 2", "2.0"])
def test_a_header_that_lies(header: str) -> None:
    with pytest.raises(MalformedBody, match="Inference-Header-Content-Length"):
        tensors.split_body(b"{}abc", header)


@pytest.mark.parametrize(
    ("data", "strings"),
    [(["a", "b"], ["a", "b"]), ([["a", "b"]], ["a", "b"]), ([["a"], [], [["b"]]], ["a", "b"])],
)
def test_strings(data: list[Any], strings: list[str]) -> None:
    assert tensors.read_strings(data, 2, "expression") == strings


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (["a"], "1 elements where the shape says 2"),
        (["a"] * 3, "3 elements where the shape says 2"),
        (["a", 1], "holds a number"),
        (["a", None], "holds null"),
        (["a", True], "holds true or false"),
        (["a", {"b64": "YQ=="}], "holds an object"),
        ([[[[]]]], "0 elements"),
    ],
)
def test_what_is_no_string(data: list[Any], words: str) -> None:
    with pytest.raises(InvalidField, match=words):
        tensors.read_strings(data, 2, "expression")


def split_answer(pieces: list[tensors.Piece], length: int | None) -> tuple[dict[str, Any], bytes]:
    body = b"".join(pieces)
    size = len(body) if length is None else length
    return json.loads(body[:size]), body[size:]


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5)),
    binary=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    seed=st.integers(0, 2**32 - 1),
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=3),
)
def test_an_answer_reads_back(
    shape: tuple[int, int, int], binary: tuple[bool, bool, bool], seed: int, texts: list[str]
) -> None:
    masks = np.random.default_rng(seed).integers(0, 2, shape, dtype=np.uint8)
    scores = [0.25] * shape[0]
    made = [
        tensors.mask_tensor("mask", masks, binary[0]),
        tensors.score_tensor("score", scores, binary[1]),
        tensors.text_tensor("rle", texts, binary[2]),
    ]
    document, behind = split_answer(*tensors.join_answer({"id": "7"}, made))
    assert document.pop("id") == "7"
    values: dict[str, Any] = {}
    for output, is_binary in zip(document["outputs"], binary, strict=True):
        assert ("data" in output) != is_binary
        values[output["name"]] = output.get("data")
        if is_binary:
            size = output["parameters"]["binary_data_size"]
            values[output["name"]], behind = behind[:size], behind[size:]
    assert behind == b""
    assert [output["shape"] for output in document["outputs"]] == [
        list(shape), [shape[0]], [len(texts)],
    ]  # fmt: skip
    flat = np.frombuffer(values["mask"], np.uint8) if binary[0] else np.array(values["mask"])
    assert (flat.reshape(shape) == masks).all()
    found = np.frombuffer(values["score"], "<f4").tolist() if binary[1] else values["score"]
    assert found == scores
    if binary[2]:
        data = memoryview(values["rle"])
        values["rle"] = [each.decode() for each in tensors.read_elements(data, len(texts), "rle")]
    assert values["rle"] == texts
