"""Label Studio's predictions: tasks with images in, brush regions out.

What the annotator typed is what to find; without it, each label of the brush is.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import Any

from service.answers import FoundMask
from service.backends.base import ModelSpec
from service.brush_rle import encode_brush_rle
from service.errors import InvalidField
from service.foreign_schemas import (
    LabelStudioEvent,
    LabelStudioPredict,
    LabelStudioPrediction,
    LabelStudioSetup,
)
from service.image_reference import read_image_reference
from service.label_studio_config import BrushControl, has_controls, read_brush
from service.request_parsing import (
    JSON,
    RawRequest,
    SegmentTask,
    check_expressions,
    parse_json,
    refuse_encoding,
    validate_options,
)
from service.settings import Settings
from service.translation import Findings, Payload

_HINT = "send what Label Studio itself sends"


def model_version(spec: ModelSpec) -> str:
    """Under which predictions are kept."""
    return f"{spec.name}-{spec.version}"


def parse_setup(raw: RawRequest) -> None:
    """Check what a project is set up with. Raises members of `service.errors`."""
    refuse_encoding(raw)
    config = parse_json(raw.body, LabelStudioSetup, _HINT).label_config
    if config.strip() and has_controls(config, "schema"):
        read_brush(config, "schema")


def parse_event(raw: RawRequest) -> None:
    """Check what happened in a project. Raises members of `service.errors`."""
    refuse_encoding(raw)
    parse_json(raw.body, LabelStudioEvent, _HINT)


class PredictRequest:
    """A request for predictions of several tasks; it is parsed once, when the first is read."""

    def __init__(self, raw: RawRequest, settings: Settings) -> None:
        self._raw, self.settings = raw, settings
        self.document: LabelStudioPredict
        self.brush: BrushControl
        self.expressions: tuple[str, ...]

    def predictions(self) -> Iterator[TaskPrediction]:
        """A translation of each task; how many there are is known when the first has been read."""
        yield TaskPrediction(self, 0)
        for index in range(1, len(self.document.tasks)):
            yield TaskPrediction(self, index)

    def parse(self) -> None:
        """CPU work. Raises members of `service.errors`."""
        refuse_encoding(self._raw)
        self.document = parse_json(self._raw.body, LabelStudioPredict, _HINT)
        self.brush = read_brush(self.document.label_config, "label_config")
        self.expressions = self._read_expressions()
        check_expressions(self.expressions, self.settings, "text")

    def _read_expressions(self) -> tuple[str, ...]:
        context = self.document.params and self.document.params.context
        typed: list[str] = []
        for region in context.result if context else ():
            text = region.value.text
            typed.extend([text] if isinstance(text, str) else text)
        wanted = typed or [label.value for label in self.brush.labels]
        if not wanted:
            message = (
                "nothing to find: the brush has no labels and no text was typed; add labels, or "
                'a <TextArea name="prompt" toName="image"/> and type into it'
            )
            raise InvalidField([("label_config", message)])
        return tuple(dict.fromkeys(wanted))


class TaskPrediction:
    """Translation of one of its tasks."""

    def __init__(self, request: PredictRequest, index: int) -> None:
        self._request, self._index = request, index

    def read(self) -> SegmentTask:
        request, index = self._request, self._index
        if index == 0:
            request.parse()
        key = request.brush.data_key
        field = f"tasks.{index}.data.{key}"
        reference = request.document.tasks[index].data.get(key)
        if not isinstance(reference, str):
            message = "missing or no text; the labelling configuration says that the image is here"
            raise InvalidField([(field, message)])
        image = read_image_reference(reference, field, request.settings)
        return SegmentTask(image, request.expressions, validate_options({}))

    def write(self, found: Findings) -> Payload:
        regions: list[dict[str, Any]] = []
        scores: list[float] = []
        for each in found.masks:
            scores.append(each.score)
            if each.mask.area:
                regions.append(self._region(each))
        prediction = LabelStudioPrediction(
            result=regions,
            score=round(sum(scores) / len(scores), 6),
            model_version=model_version(found.spec),
        )
        return Payload(prediction.model_dump_json().encode(), JSON)

    def _region(self, found: FoundMask) -> dict[str, Any]:
        brush = self._request.brush
        value: dict[str, Any] = {"format": "rle", "rle": encode_brush_rle(found.mask)}
        if brush.tag == "brushlabels":
            value["brushlabels"] = [brush.label_for(found.finding.expression)]
        return {
            "id": uuid.uuid4().hex[:10],
            "from_name": brush.name,
            "to_name": brush.image_name,
            "type": brush.tag,
            "origin": "prediction",
            "original_width": found.mask.width,
            "original_height": found.mask.height,
            "image_rotation": 0,
            "score": round(found.score, 6),
            "meta": {"text": [found.finding.expression]},
            "value": value,
        }
