"""The messages of `/stream`: a configuration in, JSON out; and a frame as the pipeline sees it."""

from __future__ import annotations

import json

from pydantic import ValidationError

from service.backends.base import ModelSpec
from service.errors import InvalidField, MalformedBody, ServiceError, TooLarge
from service.negotiation import AnswerKind
from service.request_parsing import SegmentTask, check_expressions, validation_faults
from service.schemas import StreamConfiguration
from service.segment_translation import write_answer
from service.settings import Settings
from service.translation import Findings, Payload

SUBPROTOCOL = "segvlm.v1"

_JSON = AnswerKind("json", "application/json")
_LONGEST_ESCAPE = 6  # characters of JSON for one: a backslash, u and four digits
_ROOM_FOR_OPTIONS = 4096  # characters of a configuration beside its expressions
_HINT = 'send a text message such as {"expressions": ["the dog"]} first, then one image in each '
_HINT += "binary message"


class FrameTranslation:
    """One frame, asked about with the configuration that held when it came."""

    def __init__(self, image: bytes, configuration: StreamConfiguration) -> None:
        self._image, self._configuration = image, configuration

    def read(self) -> SegmentTask:
        configuration = self._configuration
        return SegmentTask(self._image, tuple(configuration.expressions), configuration)

    def write(self, found: Findings) -> Payload:
        return write_answer(found, _JSON)


def parse_configuration(text: str, settings: Settings) -> StreamConfiguration:
    """Raises TooLarge, MalformedBody or InvalidField."""
    # Parsed on the event loop, so bounded by what can be valid.
    expressions = settings.max_expressions * settings.max_expression_length
    limit = _LONGEST_ESCAPE * expressions + _ROOM_FOR_OPTIONS
    if len(text) > limit:
        raise TooLarge(
            f"a text message is longer than {limit:,} characters; it holds only the configuration, "
            "images are binary messages",
            limit,
        )
    try:
        configuration = StreamConfiguration.model_validate_json(text)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            message = error.errors()[0]["msg"]
            raise MalformedBody(f"the message is not valid JSON ({message}); {_HINT}") from error
        raise InvalidField(validation_faults(error)) from error
    check_expressions(configuration.expressions, settings)
    return configuration


def not_configured() -> InvalidField:
    """What a frame gets that comes before any configuration."""
    return InvalidField([("expressions", f"not known yet; {_HINT}")])


def ready_message(spec: ModelSpec) -> str:
    """The answer to a configuration: it holds for the frames that were sent after it."""
    return json.dumps({"type": "ready", "model": {"name": spec.name, "version": spec.version}})


def result_message(frame: int, dropped: int, limited: bool, payload: Payload) -> str:
    """The answer to a frame: its place in front of the members of `POST /segment`'s answer."""
    place = {"type": "result", "frame": frame, "dropped": dropped, "limited": limited}
    return f"{json.dumps(place)[:-1]},{payload.body[1:].decode()}"


def error_message(frame: int | None, error: ServiceError, request_id: str) -> str:
    """The problem, its `type` left out; `retry_after` (seconds) where HTTP has a Retry-After."""
    problem = error.problem(request_id)
    if "Retry-After" in error.headers:
        problem["retry_after"] = int(error.headers["Retry-After"])
    return json.dumps({**problem, "type": "error", "frame": frame})
