"""Hugging Face's image segmentation: an image as it is, or in JSON; a list of labelled masks out.

The task has no text of its own: the expressions stand in the query or among the parameters.
"""

from __future__ import annotations

import base64

from pydantic import TypeAdapter

from service import mask_formats
from service.errors import InvalidField, UnsupportedMedia
from service.foreign_schemas import HuggingFaceJson, HuggingFaceParameters, HuggingFaceSegment
from service.request_parsing import (
    JSON,
    MULTIPART,
    RawRequest,
    SegmentTask,
    check_expressions,
    decode_base64,
    parse_json,
    refuse_encoding,
    validate_options,
)
from service.settings import Settings
from service.translation import Findings, Payload

_ANSWER = TypeAdapter(list[HuggingFaceSegment])
_HINT = 'send the image file itself, or {"inputs": its base64, "parameters": {...}}'


class HuggingFaceTranslation:
    """Of one request."""

    def __init__(self, raw: RawRequest, settings: Settings) -> None:
        self._raw, self._settings = raw, settings
        self._least_score = 0.0

    def read(self) -> SegmentTask:
        refuse_encoding(self._raw)
        image, parameters = self._read_body()
        self._least_score = parameters.threshold or 0.0
        expressions = [*self._asked_in_query(), *_listed(parameters.expression)]
        if not expressions:
            message = "missing; add ?expression=the+dog to the URL, repeated for several"
            raise InvalidField([("expression", message)])
        check_expressions(expressions, self._settings, "expression")
        options = validate_options({"threshold": parameters.mask_threshold})
        return SegmentTask(image, tuple(expressions), options)

    def write(self, found: Findings) -> Payload:
        segments = [
            HuggingFaceSegment(
                label=each.finding.expression,
                score=round(each.score, 6),
                mask=base64.b64encode(mask_formats.encode_grey_png(each.mask)).decode("ascii"),
            )
            for each in found.masks
            if each.score >= self._least_score
        ]
        return Payload(_ANSWER.dump_json(segments), JSON)

    def _read_body(self) -> tuple[bytes, HuggingFaceParameters]:
        """Clients send images with any Content-Type or none, but no image begins with a brace."""
        media_type = self._raw.content_type.split(";")[0].strip().lower()
        if media_type == MULTIPART:
            raise UnsupportedMedia(f"a form is not supported here; {_HINT}")
        if media_type == JSON or self._raw.body[:64].lstrip().startswith(b"{"):
            document = parse_json(self._raw.body, HuggingFaceJson, _HINT)
            image = decode_base64(document.inputs, "inputs")
            return image, document.parameters or HuggingFaceParameters()
        return self._raw.body, HuggingFaceParameters()

    def _asked_in_query(self) -> list[str]:
        unknown = [name for name, _ in self._raw.query if name != "expression"]
        if unknown:
            message = "unknown field in the query, which takes expression; others are parameters"
            raise InvalidField([(name[:64], message) for name in unknown])
        return [value for _, value in self._raw.query]


def _listed(expression: str | list[str]) -> list[str]:
    return [expression] if isinstance(expression, str) else expression
