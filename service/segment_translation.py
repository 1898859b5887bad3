"""Our own protocol: a form or JSON in, JSON or a picture out."""

from __future__ import annotations

from service import answers, mask_formats
from service.negotiation import AnswerKind, choose_answer
from service.request_parsing import RawRequest, SegmentTask, parse_task
from service.settings import Settings
from service.translation import Findings, Payload


class TaskTranslation:
    """Of a task that is already parsed, into an answer of a known kind."""

    def __init__(self, task: SegmentTask, kind: AnswerKind) -> None:
        self._task, self._kind = task, kind

    def read(self) -> SegmentTask:
        return self._task

    def write(self, found: Findings) -> Payload:
        return write_answer(found, self._kind)


class SegmentTranslation:
    """Of a request to `POST /segment`; `accept` is its Accept header."""

    def __init__(self, raw: RawRequest, accept: str, settings: Settings) -> None:
        self._raw, self._accept, self._settings = raw, accept, settings

    def read(self) -> SegmentTask:
        task = parse_task(self._raw, self._settings)
        choose_answer(task, self._accept)  # refused before the model runs
        return task

    def write(self, found: Findings) -> Payload:
        return write_answer(found, choose_answer(found.task, self._accept))


def write_answer(found: Findings, kind: AnswerKind) -> Payload:
    """The document, the one mask or the drawn photo."""
    if kind.name == "json":
        results = [answers.describe(each, found.task.options) for each in found.masks]
        body = answers.render_json(found.spec, found.geometry, results, found.timings())
    elif kind.name == "mask":
        body = mask_formats.encode_png(next(found.masks).mask)
    else:
        body = answers.draw_overlay(found.photo(), found.masks, kind.media_type)
    return Payload(body, kind.media_type)
