"""Bodies of `/infer`: the good ones are read, of all others it is said in words what is wrong."""

from __future__ import annotations

import base64
import copy
import json
import struct
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.errors import CallerError, InvalidField, MalformedBody, TooLarge
from service.inference_v2.compression import compress
from service.inference_v2.infer_parsing import Infer, RawInfer, WantedOutput, parse_infer
from service.settings import Settings

SETTINGS = Settings(backend="fake", max_expressions=4, max_expression_length=20)
IMAGE = b"\x89PNG\r\n\x1a\n and so on"
TEXTS = ["the dog", "le café"]


def parse(body: bytes, header_length: Any = None, encoding: str = "") -> Infer:
    header = None if header_length is None else str(header_length)
    return parse_infer(RawInfer(body, encoding, header), SETTINGS, lambda size: None)


def elements(*each: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(element)) + element for element in each)


def in_json(**members: Any) -> dict[str, Any]:
    """A good request; `members` replace its own."""
    image = base64.b64encode(IMAGE).decode()
    return {
        "inputs": [
            {"name": "image", "shape": [1], "datatype": "BYTES", "data": [image]},
            {"name": "expression", "shape": [2], "datatype": "BYTES", "data": TEXTS},
        ],
        **members,
    }


def in_binary() -> tuple[dict[str, Any], bytes]:
    """The JSON of a good request and what follows it."""
    parts = [elements(IMAGE), elements(*(text.encode() for text in TEXTS))]
    document = in_json()
    for each, part in zip(document["inputs"], parts, strict=True):
        del each["data"]
        each["parameters"] = {"binary_data_size": len(part)}
    return document, b"".join(parts)


def parse_binary(document: dict[str, Any], behind: bytes) -> Infer:
    header = json.dumps(document).encode()
    return parse(header + behind, len(header))


def changed(place: str, value: Any) -> dict[str, Any]:
    """A good request in JSON, but for what is at `place`; None takes it away."""
    document = copy.deepcopy(in_json())
    *way, last = (int(part) if part.isdigit() else part for part in place.split("."))
    holder: Any = document
    for part in way:
        holder = holder[part]
    if value is None:
        holder.pop(last, None) if isinstance(holder, dict) else holder.pop(last)
    else:
        holder[last] = value
    return document


def test_the_same_in_json_and_in_binary() -> None:
    binary = parse_binary(*in_binary())
    in_text = parse(json.dumps(in_json()).encode())
    assert binary == in_text
    assert binary.task.image == IMAGE
    assert binary.task.expressions == tuple(TEXTS)
    assert binary.task.options.threshold is None
    assert binary.task.timeout is None
    assert binary.id is None
    names = ("mask", "score", "rle")
    assert binary.outputs == tuple(WantedOutput(name, False) for name in names)


def test_what_a_request_may_say() -> None:
    outputs = [
        {"name": "rle"},
        {"name": "mask", "parameters": {"binary_data": False, "unknown": 1}},
    ]
    parameters = {"threshold": 1, "timeout": 2_500_000, "binary_data_output": True, "priority": 3}
    document = in_json(id="a", outputs=outputs, parameters=parameters, unknown="ignored")
    infer = parse(json.dumps(document).encode())
    assert infer.id == "a"
    assert infer.task.timeout == 2.5
    assert infer.task.options.threshold == 1
    assert infer.outputs == (WantedOutput("rle", True), WantedOutput("mask", False))


def test_what_may_be_null() -> None:
    document = in_json(id=None, outputs=None, parameters=None)
    document["inputs"][0]["parameters"] = None
    assert parse(json.dumps(document).encode()) == parse(json.dumps(in_json()).encode())


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("inputs.0.shape", [1, 1]),
        ("inputs.1.shape", [1, 2]),
        ("inputs.1.data", [TEXTS]),
        ("inputs.0.data", ["data:image/png;base64," + base64.b64encode(IMAGE).decode()]),
        ("inputs.0.data", [base64.encodebytes(IMAGE).decode()]),
        ("parameters", {"timeout": 0}),
        ("outputs", []),
    ],
)
def test_what_means_the_same(place: str, value: Any) -> None:
    assert parse(json.dumps(changed(place, value)).encode()) == parse_binary(*in_binary())


def test_expressions_in_base64() -> None:
    document = in_json()
    texts = [base64.b64encode(text.encode()).decode() for text in TEXTS]
    document["inputs"][1].update(data=texts, parameters={"content_type": "base64"})
    assert parse(json.dumps(document).encode()).task.expressions == tuple(TEXTS)


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
def test_a_compressed_body(coding: Any) -> None:
    document, behind = in_binary()
    header = json.dumps(document).encode()
    packed = compress([header, behind], coding)
    assert parse(packed, len(header), coding) == parse_binary(document, behind)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("inputs", None, "inputs"),
        ("inputs", [], "there is no 'image'"),
        ("inputs", {}, "inputs"),
        ("inputs", [{"name": "image", "shape": [1], "datatype": "BYTES"}] * 17, "inputs"),
        ("inputs.0", None, "there is no 'image'"),
        ("inputs.1", None, "there is no 'expression'"),
        ("inputs.1.name", "image", "'image' is given twice"),
        ("inputs.1.name", "text", "no input 'text'"),
        ("inputs.1.name", "x" * 1000, "at most 64"),
        ("inputs.0.datatype", "UINT8", "'UINT8' is not supported"),
        ("inputs.1.datatype", "FP32", "'FP32' is not supported"),
        ("inputs.0.datatype", 1, "datatype"),
        ("inputs.0.shape", [2], "one image a request"),
        ("inputs.0.shape", [], "one image a request"),
        ("inputs.0.shape", [-1], "shape.0"),
        ("inputs.0.shape", [True], "shape.0"),
        ("inputs.0.shape", ["1"], "shape.0"),
        ("inputs.0.shape", [1.0], "shape.0"),
        ("inputs.0.shape", [1] * 9, "shape"),
        ("inputs.1.shape", [2, 1], "must be"),
        ("inputs.1.shape", [], "must be"),
        ("inputs.1.shape", [0], "send 1 to 4 expressions"),
        ("inputs.1.shape", [5], "send 1 to 4 expressions"),
        ("inputs.1.shape", [10**30], "expression"),
        ("inputs.1.shape", [3], "2 elements where the shape says 3"),
        ("inputs.0.data", None, "needs either data or"),
        ("inputs.0.data", "text", "data"),
        ("inputs.0.data", [1], "holds a number"),
        ("inputs.0.data", ["not base64!"], "not valid base64"),
        ("inputs.0.parameters", {"binary_data_size": 4}, "needs either data or"),
        ("inputs.0.parameters", {"shared_memory_region": "x"}, "not supported"),
        ("inputs.1.parameters", {"content_type": "base64"}, "not valid base64"),
        ("inputs.1.data", ["a", ""], "empty"),
        ("inputs.1.data", ["a", "x" * 21], "21 characters"),
        ("outputs", [{"name": "depth"}], "no output 'depth'"),
        ("outputs", [{"name": "rle"}, {"name": "rle"}], "'rle' is given twice"),
        ("outputs", [{"name": "rle", "parameters": {"classification": 3}}], "no classes"),
        ("outputs", [{"name": "rle", "parameters": {"binary_data": 1}}], "binary_data"),
        ("parameters", {"threshold": 1.5}, "threshold"),
        ("parameters", {"threshold": "0.5"}, "threshold"),
        ("parameters", {"threshold": float("nan")}, "threshold"),
        ("parameters", {"timeout": -1}, "timeout"),
        ("parameters", {"timeout": 1.5}, "timeout"),
        ("parameters", [], "parameters"),
        ("id", 7, "id"),
        ("id", "x" * 2000, "id"),
    ],
)
def test_what_is_wrong_is_said(place: str, value: Any, words: str) -> None:
    with pytest.raises(InvalidField, match=words):
        parse(json.dumps(changed(place, value)).encode())


@pytest.mark.parametrize("microseconds", [10**300, 10**400])
def test_a_timeout_beyond_all_bounds_is_a_timeout(microseconds: int) -> None:
    document = in_json(parameters={"timeout": microseconds})
    assert parse(json.dumps(document).encode()).task.timeout == 1e9


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"null and void",
        b"\xff\xfe",
        b'{"id": "\\ud800"}',
        b'{"inputs": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"id": ' + b"9" * 10_000 + b"}",
        IMAGE,
    ],
)
def test_what_is_no_json(body: bytes) -> None:
    with pytest.raises(CallerError) as caught:
        parse(body)
    assert caught.value.status in (400, 422)


@pytest.mark.parametrize("body", [b"null", b"[]", b"7", b'"text"', b"NaN"])
def test_json_that_is_no_object(body: bytes) -> None:
    with pytest.raises(CallerError):
        parse(body)


def test_not_utf_8() -> None:
    document, _ = in_binary()
    parts = [elements(IMAGE), elements(b"the dog", b"le caf\xe9")]
    document["inputs"][1]["parameters"]["binary_data_size"] = len(parts[1])
    with pytest.raises(InvalidField, match="not UTF-8"):
        parse_binary(document, b"".join(parts))


def test_sizes_that_do_not_add_up() -> None:
    document, behind = in_binary()
    with pytest.raises(MalformedBody, match="sums to"):
        parse_binary(document, behind + b"x")
    with pytest.raises(MalformedBody, match="sums to"):
        parse_binary(document, behind[:-1])
    document["inputs"][0]["parameters"]["binary_data_size"] += 1
    document["inputs"][1]["parameters"]["binary_data_size"] -= 1
    with pytest.raises(InvalidField, match="image"):
        parse_binary(document, behind)


@pytest.mark.parametrize("size", [-1, 1.5, "4", True, 10**20])
def test_a_size_that_cannot_be(size: Any) -> None:
    document, behind = in_binary()
    document["inputs"][0]["parameters"]["binary_data_size"] = size
    with pytest.raises(CallerError):
        parse_binary(document, behind)


def test_binary_data_without_its_header() -> None:
    document, behind = in_binary()
    with pytest.raises(InvalidField, match="Inference-Header-Content-Length"):
        parse(json.dumps(document).encode())
    with pytest.raises(MalformedBody, match="Inference-Header-Content-Length"):
        parse(json.dumps(document).encode() + behind)


def test_values_without_end_cost_no_memory() -> None:
    """A million small numbers are refused before they become a million objects."""
    document = in_json()
    document["inputs"][0]["data"] = [0] * 1_000_000
    body = json.dumps(document).encode()
    tracemalloc.start()
    try:
        with pytest.raises(TooLarge, match="too many values"):
            parse(body)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(body)
    finally:
        tracemalloc.stop()


def test_what_the_settings_allow_is_not_too_much() -> None:
    """Expressions full of JSON's own marks."""
    texts = ['"' * SETTINGS.max_expression_length] * SETTINGS.max_expressions
    document = changed("inputs.1.data", texts)
    document["inputs"][1]["shape"] = [len(texts)]
    assert parse(json.dumps(document).encode()).task.expressions == tuple(texts)


# -- anything at all --------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
PLACES = st.sampled_from(
    ["id", "inputs", "outputs", "parameters"]
    + [
        f"inputs.{index}.{name}"
        for index in (0, 1)
        for name in ("name", "shape", "datatype", "data", "parameters")
    ]
)


def check(parse_it: Any) -> None:
    """It is read, or refused as the caller's fault in words."""
    refused: list[CallerError] = []
    try:
        assert parse_it().task.expressions
    except CallerError as error:
        refused.append(error)
    assert all(error.status in (400, 413, 415, 422) and error.detail for error in refused)


@given(PLACES, JSON)
@hypothesis_settings(deadline=None, max_examples=300)
def test_anything_anywhere(place: str, value: Any) -> None:
    check(lambda: parse(json.dumps(changed(place, value)).encode()))


@given(st.data())
@hypothesis_settings(deadline=None, max_examples=300)
def test_any_damage(data: st.DataObject) -> None:
    document, behind = in_binary()
    header = json.dumps(document).encode()
    body = bytearray(header + behind)
    for _ in range(data.draw(st.integers(0, 3))):
        place = data.draw(st.integers(0, len(body) - 1))
        body[place] = data.draw(st.integers(0, 255))
    cut = bytes(body[: data.draw(st.integers(0, len(body)))])
    length = data.draw(st.sampled_from([None, len(header), len(header) - 1, len(header) + 1]))
    coding = data.draw(st.sampled_from(["", "gzip", "deflate"]))
    check(lambda: parse(cut, length, coding))


@given(st.binary(max_size=300), st.none() | st.integers(-1, 400) | st.text(max_size=5))
@hypothesis_settings(deadline=None)
def test_any_bytes(body: bytes, header: Any) -> None:
    check(lambda: parse(body, header))
