"""The body of `POST /segment`, multipart or JSON, to one checked `SegmentTask`.

`parse_task` is CPU work on untrusted bytes (a form parser in Python, base64), so not for the event
loop.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from service.errors import InvalidField, MalformedBody, UnsupportedMedia
from service.schemas import SegmentJson, SegmentOptions
from service.settings import Settings

MULTIPART = "multipart/form-data"
JSON = "application/json"
_OPTIONS = tuple(SegmentOptions.model_fields)
_TRUTH = {"true": True, "false": False}
_LONGEST_OPTION = 64  # bytes; the longest that is valid has 9
_DATA_URL = re.compile(r"\s*data:[\w/+.;=-]*;base64,", re.ASCII)
_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")
_WHITESPACE = str.maketrans("", "", " \t\r\n")  # `base64 photo.jpg` wraps its lines

Document = TypeVar("Document", bound=BaseModel)

_HINT = (
    f"send {MULTIPART} with a file field `image` and a field `expression` for each expression, "
    f"or {JSON} with `image` in base64 and a list `expressions`"
)


@dataclass(frozen=True, slots=True)
class ImageUrl:
    """Where an image lies, unchecked; `service.image_url` fetches it, if the settings allow."""

    url: str


@dataclass(frozen=True, slots=True)
class SegmentTask:
    """What one request asks for; every field is within its limits.

    `image`: the file, or where the pipeline shall fetch it.
    `timeout`: seconds within which its body wants the answer, in protocols that say it there.
    """

    image: bytes | ImageUrl
    expressions: tuple[str, ...]
    options: SegmentOptions
    timeout: float | None = None


@dataclass(frozen=True, slots=True)
class RawRequest:
    """A request as it came: the whole body, its headers that matter, the query's pairs."""

    body: bytes
    content_type: str
    content_encoding: str
    query: Sequence[tuple[str, str]]


def parse_timeout(value: str | None) -> float | None:
    """The header X-Request-Timeout as seconds; None where it was not sent. Raises InvalidField."""
    if value is None:
        return None
    if _SECONDS.fullmatch(value.strip()) is None or float(value) <= 0:
        message = "not a number of seconds above 0; send for example X-Request-Timeout: 2.5"
        raise InvalidField([("X-Request-Timeout", message)])
    return float(value)


def parse_task(raw: RawRequest, settings: Settings) -> SegmentTask:
    """Parse and check. Raises UnsupportedMedia, MalformedBody or InvalidField."""
    refuse_encoding(raw)
    media_type, parameters = parse_options_header(raw.content_type)
    query = _options_of(raw.query, "the query")
    if media_type == MULTIPART.encode():
        image, expressions, options = _parse_multipart(raw.body, parameters, settings)
        options = _merge(query, options)
    elif media_type == JSON.encode():
        document = parse_json(raw.body, SegmentJson, _HINT)
        image, expressions = _image_of(document), document.expressions
        options = _merge(query, document.model_dump(include=set(_OPTIONS), exclude_unset=True))
    else:
        raise UnsupportedMedia(f"Content-Type {raw.content_type!r} is not supported; {_HINT}")
    check_expressions(expressions, settings)
    return SegmentTask(image, tuple(expressions), validate_options(options))


def refuse_encoding(raw: RawRequest) -> None:
    """Raise UnsupportedMedia for a body that is compressed."""
    if raw.content_encoding.strip().lower() not in ("", "identity"):
        raise UnsupportedMedia(
            f"Content-Encoding {raw.content_encoding!r} is not supported; send the body as it is"
        )


# -- options ----------------------------------------------------------------------------------


def _options_of(pairs: Iterable[tuple[str, str]], place: str) -> dict[str, Any]:
    """Name-value pairs of text as options. Raises InvalidField for unknown and repeated names."""
    options: dict[str, Any] = {}
    for name, value in pairs:
        if name not in _OPTIONS:
            raise InvalidField(
                [(name, f"unknown field in {place}; the options are {', '.join(_OPTIONS)}")]
            )
        if name in options:
            raise InvalidField([(name, f"given twice in {place}; give it once")])
        is_switch = SegmentOptions.model_fields[name].annotation is bool
        options[name] = _TRUTH.get(value.lower(), value) if is_switch else value
    return options


def _merge(query: dict[str, Any], body: dict[str, Any]) -> dict[str, Any]:
    unlike = [
        name
        for name in sorted(query.keys() & body.keys())
        if validate_options({name: query[name]}) != validate_options({name: body[name]})
    ]
    if unlike:
        told = "given in the query and, not the same, in the body; give it once"
        raise InvalidField([(name, told) for name in unlike])
    return {**query, **body}


def validate_options(options: dict[str, Any]) -> SegmentOptions:
    """Options by name, values as text or typed. Raises InvalidField that names each bad one."""
    try:
        return SegmentOptions.model_validate(options)
    except ValidationError as error:
        raise InvalidField(validation_faults(error)) from error


def validation_faults(error: ValidationError) -> list[tuple[str, str]]:
    """Each invalid field and what is wrong with it, for InvalidField."""
    return [
        (".".join(map(str, fault["loc"])) or "body", fault["msg"])
        for fault in error.errors(include_url=False, include_input=False)
    ]


def check_expressions(
    expressions: Sequence[str], settings: Settings, field: str = "expressions"
) -> None:
    """Raise InvalidField for too many expressions, and for each that is empty or too long.

    `field`: what the protocol calls them.
    """
    if len(expressions) > settings.max_expressions:
        raise InvalidField(
            [
                (
                    field,
                    f"{len(expressions)} were sent, at most {settings.max_expressions} are "
                    "accepted; split them over several requests",
                )
            ]
        )
    faults = []
    for index, expression in enumerate(expressions):
        if not expression.strip():
            faults.append((f"{field}.{index}", "empty; name what to find, such as 'the dog'"))
        elif len(expression) > settings.max_expression_length:
            faults.append(
                (
                    f"{field}.{index}",
                    f"has {len(expression)} characters, at most {settings.max_expression_length} "
                    "are accepted; shorten it",
                )
            )
    if faults:
        raise InvalidField(faults)


# -- JSON -------------------------------------------------------------------------------------


def parse_json(body: bytes, kind: type[Document], hint: str) -> Document:
    """The body as `kind`. Raises MalformedBody, which ends with `hint`, or InvalidField."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            message = error.errors()[0]["msg"]
            raise MalformedBody(f"the body is not valid JSON ({message}); {hint}") from error
        raise InvalidField(validation_faults(error)) from error


def _image_of(document: SegmentJson) -> bytes | ImageUrl:
    if bool(document.image) == bool(document.image_url):
        raise InvalidField([("image", "send either image, in base64, or image_url")])
    if document.image_url:
        return ImageUrl(document.image_url)
    return decode_base64(document.image)


def decode_base64(text: str, field: str = "image") -> bytes:
    """The file in base64 or a data URL. Raises InvalidField that names `field`."""
    prefix = _DATA_URL.match(text[:256])
    encoded = text[prefix.end() if prefix else 0 :].translate(_WHITESPACE)
    try:
        return base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidField(
            [(field, f"not valid base64 ({error}); encode the file's bytes with padding")]
        ) from error


# -- multipart --------------------------------------------------------------------------------

_EMPTY_BOXES = (b"", ImageUrl(""))


@dataclass(slots=True)
class _Part:
    disposition: bytes = b""
    data: bytearray = field(default_factory=bytearray)

    @property
    def name(self) -> str:
        _, parameters = parse_options_header(self.disposition)
        return parameters.get(b"name", b"").decode("utf-8", "replace")


class _PartCollector:
    """Callbacks for `MultipartParser` that keep at most `max_parts` parts in memory."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[_Part] = []
        self.complete = False
        self._max_parts = max_parts
        self._header_name = bytearray()
        self._header_value = bytearray()

    def on_part_begin(self) -> None:
        if len(self.parts) == self._max_parts:
            raise InvalidField(
                [("expression", f"the form has more than {self._max_parts} parts; send fewer")]
            )
        self.parts.append(_Part())

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self.parts[-1].disposition = bytes(self._header_value)
        self._header_name.clear()
        self._header_value.clear()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self.parts[-1].data += memoryview(data)[start:end]

    def on_end(self) -> None:
        self.complete = True


def _split_parts(body: bytes, boundary: bytes, max_parts: int) -> list[_Part]:
    collector = _PartCollector(max_parts)
    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": collector.on_part_begin,
                "on_header_field": collector.on_header_field,
                "on_header_value": collector.on_header_value,
                "on_header_end": collector.on_header_end,
                "on_part_data": collector.on_part_data,
                "on_end": collector.on_end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise MalformedBody(f"the form cannot be parsed ({error}); {_HINT}") from error
    if not collector.complete:
        raise MalformedBody(f"the form ends before its closing boundary; {_HINT}")
    return collector.parts


def _parse_multipart(
    body: bytes, parameters: dict[bytes, bytes], settings: Settings
) -> tuple[bytes | ImageUrl, list[str], dict[str, Any]]:
    boundary = parameters.get(b"boundary")
    if not boundary:
        raise MalformedBody(
            "the Content-Type has no boundary; let the HTTP client set the header of a form itself"
        )
    max_parts = 2 + settings.max_expressions + len(_OPTIONS)
    images: list[bytes | ImageUrl] = []
    expressions: list[str] = []
    pairs: list[tuple[str, str]] = []
    for part in _split_parts(body, boundary, max_parts):
        name = part.name
        if name == "image":
            images.append(bytes(part.data))
        elif name == "image_url":
            images.append(ImageUrl(_text(name, part.data)))
        elif name == "expression":
            expressions.append(_text(name, part.data))
        elif name in _OPTIONS:
            pairs.append((name, _text(name, part.data[: _LONGEST_OPTION + 1])))
        else:
            known = ", ".join(("image", "image_url", "expression", *_OPTIONS))
            raise InvalidField([(name[:64], f"unknown field of the form; known are {known}")])
    # A page's form sends its empty boxes, too: of a file and an address, the one that was left.
    images = [each for each in images if each not in _EMPTY_BOXES] or images
    missing = []
    if len(images) != 1:
        missing.append(
            ("image", f"{len(images)} were sent; send exactly one, as a file or image_url")
        )
    if not expressions:
        missing.append(("expression", "missing; send at least one, such as expression=the dog"))
    if missing:
        raise InvalidField(missing)
    return images[0], expressions, _options_of(pairs, "the form")


def _text(name: str, data: bytearray) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidField([(name, "not UTF-8; encode the form's text as UTF-8")]) from error
