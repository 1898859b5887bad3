"""The log, for people or for programs: a line for each request, its id in every line about it."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

from pythonjsonlogger.json import JsonFormatter

from service.request_record import RequestRecord, current_request_id
from service.settings import Settings

logger = logging.getLogger("segvlm.access")

_TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s%(request)s"


def configure_log(settings: Settings) -> None:
    """Log to standard error in the form that the settings name; for the process as a whole."""
    handler = logging.StreamHandler(sys.stderr)
    if settings.log_format == "json":
        handler.setFormatter(_JsonLines())
    else:
        handler.setFormatter(logging.Formatter(_TEXT))
    handler.addFilter(_add_request_id)
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # of a bad form its sender hears


def log_request(ended: RequestRecord) -> None:
    """One line: what was asked, what became of it, and the milliseconds of each stage."""
    milliseconds = {"total": _milliseconds(ended.finished_at - ended.started_at)}
    for stage in ended.stages:
        spent = milliseconds.get(stage.name, 0.0) + _milliseconds(stage.seconds)
        milliseconds[stage.name] = round(spent, 3)
    outcome = f"{ended.status} {ended.reason}" if ended.reason else str(ended.status)
    shown = " ".join(f"{name}={value:g}" for name, value in milliseconds.items())
    frames = "".join(f" {name}={value}" for name, value in ended.frames.items())
    logger.info(
        "%s %s %s%s ms: %s%s",
        ended.method,
        ended.path,
        outcome,
        frames,
        shown,
        f" key={ended.key}" if ended.key else "",
        extra={
            "method": ended.method,
            "path": ended.path,
            "route": ended.route,
            "status": ended.status,
            "reason": ended.reason,
            "key": ended.key,
            "milliseconds": milliseconds,
            **({"frames": dict(ended.frames)} if ended.frames else {}),
        },
    )


class _JsonLines(JsonFormatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, request_id, fields."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s %(message)s", rename_fields=_NAMES)

    def add_fields(
        self,
        log_data: dict[str, object],
        record: logging.LogRecord,
        message_dict: dict[str, object],
    ) -> None:
        log_data["time"] = datetime.fromtimestamp(record.created, UTC).isoformat()
        super().add_fields(log_data, record, message_dict)
        log_data.pop("request", None)  # the text form's own


_NAMES = {"levelname": "level", "name": "logger"}


def _add_request_id(record: logging.LogRecord) -> bool:
    request_id = current_request_id.get()
    record.request = f" request_id={request_id}" if request_id else ""
    if request_id:
        record.request_id = request_id
    return True


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 3)
