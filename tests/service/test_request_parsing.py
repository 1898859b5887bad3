"""Bodies to tasks: multipart and JSON say the same, and every fault is named."""

from __future__ import annotations

import base64
import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from service.errors import CallerError, InvalidField, MalformedBody, UnsupportedMedia
from service.request_parsing import ImageUrl, RawRequest, SegmentTask, parse_task
from service.settings import Settings

LIMITS = Settings(max_expressions=3, max_expression_length=20)
IMAGE = bytes(range(256))
BOUNDARY = "frontier"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"


def form(*parts: tuple[str, bytes | str], file_name: str | None = "photo.jpg") -> bytes:
    """A form; parts called `image` are files, unless `file_name` is None."""
    body = b""
    for name, value in parts:
        is_file = name == "image" and file_name is not None
        extra = f'; filename="{file_name}"\r\nContent-Type: image/jpeg' if is_file else ""
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'
        data = value.encode() if isinstance(value, str) else value
        body += head.encode() + data + b"\r\n"
    return body + f"--{BOUNDARY}--\r\n".encode()


def parse(
    body: bytes, content_type: str = MULTIPART, encoding: str = "", **query: str
) -> SegmentTask:
    return parse_task(RawRequest(body, content_type, encoding, list(query.items())), LIMITS)


def parse_json(document: Any, **query: str) -> SegmentTask:
    return parse(json.dumps(document).encode(), "application/json", **query)


def document(**fields: Any) -> dict[str, Any]:
    return {"image": base64.b64encode(IMAGE).decode(), "expressions": ["the dog"], **fields}


def fields_at_fault(error: InvalidField) -> list[str]:
    return [fault["field"] for fault in error.members["errors"]]


def test_form_and_json_are_equal() -> None:
    options = {"format": "polygons", "threshold": "0.25", "include_probability": "true"}
    from_form = parse(
        form(("image", IMAGE), ("expression", "a"), ("expression", "π"), *options.items())
    )
    typed = {"format": "polygons", "threshold": 0.25, "include_probability": True}
    from_json = parse_json(document(expressions=["a", "π"], **typed))
    from_query = parse(form(("image", IMAGE), ("expression", "a"), ("expression", "π")), **options)
    assert from_form == from_json == from_query
    assert from_form.image == IMAGE
    assert from_form.expressions == ("a", "π")
    assert from_form.options.threshold == 0.25


def test_defaults() -> None:
    task = parse_json(document())
    assert (task.options.format, task.options.threshold) == ("rle", None)
    assert task.options.include_probability is False


@pytest.mark.parametrize("text", ["true", "True", "TRUE"])
def test_true_as_programs_write_it(text: str) -> None:
    parts = form(("image", IMAGE), ("expression", "a"), ("include_probability", text))
    assert parse(parts).options.include_probability is True


@pytest.mark.parametrize(
    ("name", "text"),
    [("include_probability", "1"), ("include_probability", ""), ("threshold", "true")],
)
def test_text_that_is_no_value_of_the_option(name: str, text: str) -> None:
    with pytest.raises(InvalidField) as caught:
        parse(form(("image", IMAGE), ("expression", "a"), (name, text)))
    assert fields_at_fault(caught.value) == [name]


@pytest.mark.parametrize("file_name", [None, "", "π.jpg", '..\\"/etc/passwd'])
def test_name_of_the_file_does_not_matter(file_name: str | None) -> None:
    assert parse(form(("image", IMAGE), ("expression", "x"), file_name=file_name)).image == IMAGE


@hypothesis_settings(deadline=None)
@given(
    image=st.binary(min_size=1, max_size=300),
    expression=st.text(st.characters(codec="utf-8"), min_size=1, max_size=20).filter(str.strip),
)
def test_any_bytes_and_text_survive_both_ways(image: bytes, expression: str) -> None:
    from_form = parse(form(("image", image), ("expression", expression)))
    encoded = base64.b64encode(image).decode()
    assert from_form == parse_json({"image": encoded, "expressions": [expression]})
    assert (from_form.image, from_form.expressions) == (image, (expression,))


@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("prefix", ["", "data:image/jpeg;base64,", "data:;base64,"])
def test_base64_as_tools_write_it(prefix: str, wrapped: bool) -> None:
    encoded = (base64.encodebytes(IMAGE) if wrapped else base64.b64encode(IMAGE)).decode()
    assert parse_json(document(image=prefix + encoded)).image == IMAGE


@pytest.mark.parametrize("image", ["###", "abc", "YWJj=YWJj", "π", "data:image/png,abc"])
def test_malformed_base64(image: str) -> None:
    with pytest.raises(InvalidField, match="base64") as caught:
        parse_json(document(image=image))
    assert fields_at_fault(caught.value) == ["image"]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"expressions": []}, "expressions"),
        ({"expressions": "the dog"}, "expressions"),
        ({"expressions": ["a", 7]}, "expressions.1"),
        ({"expressions": ["a", "  "]}, "expressions.1"),
        ({"expressions": ["x" * 21]}, "expressions.0"),
        ({"expressions": ["a"] * 4}, "expressions"),
        ({"image": ""}, "image"),
        ({"image": None}, "image"),
        ({"expression": "the dog"}, "expression"),
        ({"format": "tiff"}, "format"),
        ({"threshold": 1.5}, "threshold"),
        ({"threshold": "high"}, "threshold"),
        ({"include_probability": "perhaps"}, "include_probability"),
        # JSON has types of its own, and the OpenAPI document says which are wanted.
        ({"threshold": "0.5"}, "threshold"),
        ({"threshold": True}, "threshold"),
        ({"include_probability": "true"}, "include_probability"),
        ({"include_probability": 1}, "include_probability"),
    ],
)
def test_invalid_json_fields_are_named(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidField) as caught:
        parse_json(document(**fields))
    assert fields_at_fault(caught.value) == [field]


@pytest.mark.parametrize(
    ("parts", "fields"),
    [
        ([], ["image", "expression"]),
        ([("image", IMAGE)], ["expression"]),
        ([("expression", "x")], ["image"]),
        ([("image", IMAGE), ("image", IMAGE), ("expression", "x")], ["image"]),
        ([("image", IMAGE), ("expression", "")], ["expressions.0"]),
        ([("image", IMAGE), ("expression", b"\xff\xfe")], ["expression"]),
        ([("image", IMAGE), ("expression", "x"), ("expresion", "y")], ["expresion"]),
        ([("image", IMAGE), ("expression", "x"), ("threshold", "nan")], ["threshold"]),
        ([("image", IMAGE), ("expression", "x"), ("threshold", "1" * 999)], ["threshold"]),
        ([("image", IMAGE), *[("expression", "x")] * 4], ["expressions"]),
        ([("image", IMAGE), *[("expression", "x")] * 40], ["expression"]),
        (
            [("image", IMAGE), ("expression", "x"), ("format", "png"), ("format", "rle")],
            ["format"],
        ),
    ],
)
def test_invalid_form_fields_are_named(
    parts: list[tuple[str, bytes | str]], fields: list[str]
) -> None:
    with pytest.raises(InvalidField) as caught:
        parse(form(*parts))
    assert fields_at_fault(caught.value) == fields


def test_misspelt_query_is_refused_and_not_ignored() -> None:
    with pytest.raises(InvalidField, match="format, threshold, include_probability"):
        parse_json(document(), treshold="0.3")


def test_option_that_query_and_body_disagree_on_is_refused() -> None:
    with pytest.raises(InvalidField, match=r"threshold: given in the query and.*in the body"):
        parse_json(document(threshold=0.4), threshold="0.3")


def test_option_may_be_said_twice() -> None:
    parts = [("image", b"x"), ("expression", "a"), ("threshold", "0.3")]
    assert parse(form(*parts), threshold="0.3").options.threshold == 0.3
    assert parse_json(document(threshold=0.3), threshold="0.30").options.threshold == 0.3
    assert parse_json(document(format="png"), format="png").options.format == "png"


@pytest.mark.parametrize(
    ("boxes", "chosen"),
    [
        ([("image", b"x"), ("image_url", "")], b"x"),
        ([("image", b""), ("image_url", "https://a.org/b.png")], ImageUrl("https://a.org/b.png")),
        ([("image", b"")], b""),  # refused later, as a file that is no photo
    ],
)
def test_empty_boxes_of_a_form_are_left_out(
    boxes: list[tuple[str, bytes | str]], chosen: bytes | ImageUrl
) -> None:
    assert parse(form(*boxes, ("expression", "a"))).image == chosen


@pytest.mark.parametrize("content_type", ["", "text/plain", "image/jpeg", "a;b;c"])
def test_other_media_types(content_type: str) -> None:
    with pytest.raises(UnsupportedMedia, match=r"multipart/form-data.*application/json"):
        parse(b"x", content_type)


def test_compressed_bodies_are_refused() -> None:
    with pytest.raises(UnsupportedMedia, match="gzip"):
        parse(b"\x1f\x8b", "application/json", encoding="gzip")


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"image": "' + b"[" * 10_000])
def test_malformed_json(body: bytes) -> None:
    with pytest.raises(MalformedBody, match="not valid JSON"):
        parse(body, "application/json")


def test_json_of_another_shape() -> None:
    with pytest.raises(InvalidField):
        parse(b"[1, 2]", "application/json; charset=utf-8")


WHOLE = form(("image", IMAGE), ("expression", "the dog"))


@pytest.mark.parametrize("cut", [0, 1, 10, 60, 200, len(WHOLE) - 6])
def test_form_that_was_cut_is_refused(cut: int) -> None:
    with pytest.raises(MalformedBody):
        parse(WHOLE[:cut])


@pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary="])
def test_form_without_boundary(content_type: str) -> None:
    with pytest.raises(MalformedBody, match="boundary"):
        parse(WHOLE, content_type)


@hypothesis_settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, len(WHOLE)), st.integers(0, 50))
def test_garbage_is_an_error_of_ours_or_a_task(garbage: bytes, at: int, cut: int) -> None:
    with contextlib.suppress(CallerError):  # and nothing else
        task = parse(WHOLE[:at] + garbage + WHOLE[at + cut :])
        assert task.expressions
