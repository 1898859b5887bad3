"""The body of `/infer` to one checked request. Pure CPU work on untrusted bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from service.errors import InvalidField, MalformedBody, TooLarge
from service.inference_v2 import tensors
from service.inference_v2.compression import inflate
from service.inference_v2.model_description import EXPRESSION, IMAGE, OUTPUTS
from service.inference_v2.schemas import InferInput, InferRequest, RequestedOutput
from service.request_parsing import (
    SegmentTask,
    check_expressions,
    decode_base64,
    parse_json,
    validate_options,
)
from service.settings import Settings

_HINT = f"where tensors follow the JSON, the header {tensors.HEADER_LENGTH} says how long it is"
_BASE64 = "base64"
_LONGEST_TIMEOUT = 10**15  # microseconds, 30 years; JSON's integers can be beyond any float
_STRUCTURE = b'",:[{'
_MOST_STRUCTURE = (
    20_000  # of these, beside what the expressions may hold; a request has a few dozen
)


@dataclass(frozen=True, slots=True)
class RawInfer:
    """A request as it came: the whole body and the headers that matter."""

    body: bytes
    content_encoding: str
    header_length: str | None


@dataclass(frozen=True, slots=True)
class WantedOutput:
    """A tensor that the answer shall have, behind the JSON or in it."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True)
class Infer:
    """A checked request; `id` is echoed."""

    task: SegmentTask
    id: str | None
    outputs: tuple[WantedOutput, ...]


def parse_infer(raw: RawInfer, settings: Settings, reserve: Callable[[int], None]) -> Infer:
    """Inflate, parse and check. `reserve` is told of the bytes that come into being.

    Raises UnsupportedMedia, MalformedBody, InvalidField, TooLarge and what `reserve` raises.
    """
    body = inflate(raw.body, raw.content_encoding, settings.max_body_bytes, reserve)
    header, behind = tensors.split_body(body, raw.header_length)
    request = _parse_json(header, settings)
    parts = _share_out(request.inputs, behind, raw.header_length is not None)
    image = _image(*parts[IMAGE])
    expressions = _expressions(*parts[EXPRESSION], settings)
    parameters = request.parameters
    timeout = parameters.timeout if parameters else None
    options = {"threshold": parameters.threshold} if parameters else {}
    task = SegmentTask(
        image,
        tuple(expressions),
        validate_options(options),
        timeout=min(timeout, _LONGEST_TIMEOUT) / 1e6 if timeout else None,
    )
    binary = bool(parameters and parameters.binary_data_output)
    return Infer(task, request.id, _wanted(request.outputs, binary))


# -- the JSON ---------------------------------------------------------------------------------


def _parse_json(header: memoryview, settings: Settings) -> InferRequest:
    text = bytes(header)
    _check_structure(text, settings)
    return parse_json(text, InferRequest, _HINT)


def _check_structure(text: bytes, settings: Settings) -> None:
    """Refuse JSON of a great many values before each of them becomes an object of Python's."""
    most = _MOST_STRUCTURE + 2 * settings.max_expressions * settings.max_expression_length
    if sum(text.count(mark) for mark in _STRUCTURE) > most:
        raise TooLarge(
            "the JSON holds too many values; send the image file as one string in base64 or as "
            "binary data, not as numbers",
            most,
        )


# -- inputs -----------------------------------------------------------------------------------


def _share_out(
    inputs: list[InferInput], behind: memoryview, is_binary: bool
) -> dict[str, tuple[InferInput, memoryview | None]]:
    """Each input by its name, with its bytes behind the JSON where it has such."""
    faults: list[tuple[str, str]] = []
    parts: dict[str, tuple[InferInput, memoryview | None]] = {}
    start = 0
    for index, each in enumerate(inputs):
        size = each.parameters.binary_data_size if each.parameters else None
        if fault := _input_fault(each, size, is_binary) or _twice(each, parts):
            faults.append((f"inputs.{index}", fault))
        parts[each.name] = each, None if size is None else behind[start : start + size]
        start += size or 0
    faults += [
        ("inputs", f"there is no {name!r}; send {IMAGE!r} and {EXPRESSION!r}")
        for name in (IMAGE, EXPRESSION)
        if name not in parts
    ]
    if faults:
        raise InvalidField(faults)
    if start != len(behind):
        raise MalformedBody(
            f"{len(behind)} bytes follow the JSON, binary_data_size of the inputs sums to {start}"
        )
    return parts


def _input_fault(each: InferInput, size: int | None, is_binary: bool) -> str | None:
    """What is wrong with an input, whatever its data are."""
    if each.name not in (IMAGE, EXPRESSION):
        return f"the model has no input {each.name!r}; it has {IMAGE!r} and {EXPRESSION!r}"
    if each.datatype != "BYTES":
        return f"datatype {each.datatype!r} is not supported; {each.name!r} is BYTES"
    if (size is None) == (each.data is None):
        return "needs either data or parameters.binary_data_size"
    if size is not None and not is_binary:
        return f"binary_data_size needs the header {tensors.HEADER_LENGTH}"
    return None


def _twice(each: InferInput, before: dict[str, tuple[InferInput, memoryview | None]]) -> str | None:
    return f"{each.name!r} is given twice; give it once" if each.name in before else None


def _image(each: InferInput, data: memoryview | None) -> bytes:
    if each.shape not in ([1], [1, 1]):
        raise InvalidField([(IMAGE, f"has shape {each.shape}; one image a request: [1]")])
    if data is not None:
        return tensors.read_elements(data, 1, IMAGE)[0]
    return decode_base64(tensors.read_strings(each.data or (), 1, IMAGE)[0], IMAGE)


def _expressions(each: InferInput, data: memoryview | None, settings: Settings) -> list[str]:
    if len(each.shape) not in (1, 2) or (len(each.shape) == 2 and each.shape[0] != 1):
        raise InvalidField([(EXPRESSION, f"has shape {each.shape}; it must be [n] or [1, n]")])
    count = each.shape[-1]
    if not 1 <= count <= settings.max_expressions:
        message = f"has shape {each.shape}; send 1 to {settings.max_expressions} expressions"
        raise InvalidField([(EXPRESSION, message)])
    if data is None:
        expressions = tensors.read_strings(each.data or (), count, EXPRESSION)
        if each.parameters and each.parameters.content_type == _BASE64:
            expressions = [_text(decode_base64(text, EXPRESSION)) for text in expressions]
    else:
        expressions = [_text(part) for part in tensors.read_elements(data, count, EXPRESSION)]
    check_expressions(expressions, settings, EXPRESSION)
    return expressions


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidField([(EXPRESSION, "not UTF-8; encode the text as UTF-8")]) from error


# -- outputs ----------------------------------------------------------------------------------


def _wanted(requested: list[RequestedOutput] | None, binary: bool) -> tuple[WantedOutput, ...]:
    """What the answer holds, in order; `binary`: where an output does not say it itself."""
    if not requested:
        return tuple(WantedOutput(name, binary) for name in OUTPUTS)
    faults: list[tuple[str, str]] = []
    wanted: dict[str, WantedOutput] = {}
    for index, each in enumerate(requested):
        if each.name not in OUTPUTS:
            message = f"the model has no output {each.name!r}; it has {', '.join(OUTPUTS)}"
            faults.append((f"outputs.{index}", message))
        elif each.name in wanted:
            faults.append((f"outputs.{index}", f"{each.name!r} is given twice; give it once"))
        own = each.parameters.binary_data if each.parameters else None
        wanted[each.name] = WantedOutput(each.name, binary if own is None else own)
    if faults:
        raise InvalidField(faults)
    return tuple(wanted.values())
