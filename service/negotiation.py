"""Which kind of answer a request gets: JSON, one mask as a picture, or the photo drawn on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from service.errors import NotAcceptable
from service.request_parsing import SegmentTask

_PNG, _JPEG, _JSON = "image/png", "image/jpeg", "application/json"


@dataclass(frozen=True, slots=True)
class AnswerKind:
    """`json`: the document. `mask`: the mask as a 1-bit PNG. `overlay`: the photo, drawn on."""

    name: Literal["json", "mask", "overlay"]
    media_type: str


def choose_answer(task: SegmentTask, accept: str) -> AnswerKind:
    """Decide from the options and the Accept header, which wins over `format` between JSON and PNG.

    Raises NotAcceptable if the header wants a single mask and the task has several expressions.
    """
    if task.options.format == "overlay":
        preferred = _preferred(accept, (_PNG, _JPEG))
        return AnswerKind("overlay", preferred or _PNG)
    if _preferred(accept, (_JSON, _PNG)) != _PNG:
        return AnswerKind("json", _JSON)
    if len(task.expressions) > 1:
        raise NotAcceptable(
            f"Accept: {_PNG} answers one mask, but {len(task.expressions)} expressions were sent; "
            f"send one expression, accept {_JSON}, or ask for format=overlay"
        )
    return AnswerKind("mask", _PNG)


def _preferred(accept: str, offers: tuple[str, ...]) -> str | None:
    """The offer with the highest quality, the first of equals; None if none is accepted.

    A media range counts with its own quality, the most specific one that matches wins (RFC 9110,
    section 12.5.1).
    """
    qualities = dict(_parse_range(entry) for entry in accept.split(",") if entry.strip())
    best: tuple[float, str] | None = None
    for offer in offers:
        wildcard = offer.split("/")[0] + "/*"
        quality = qualities.get(offer, qualities.get(wildcard, qualities.get("*/*", 0.0)))
        if quality > 0 and (best is None or quality > best[0]):
            best = (quality, offer)
    return best[1] if best else None


def _parse_range(entry: str) -> tuple[str, float]:
    name, *parameters = (piece.strip().lower() for piece in entry.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                return name, float(value)
            except ValueError:
                return name, 0.0
    return name, 1.0
