"""Roboflow's concept segmentation (`/sam3/concept_segment`): prompts in, masks for each out.

Where SAM 3 finds several instances, this model answers one region for each prompt. A prediction's
confidence is the model's own, the mean probability inside the mask, as SAM 3's is its own: clients
send a limit of 0.5 unless they are told another, which suits that scale. As a limit of our score,
the expected IoU, it would leave out about half of what the bundled model finds.
"""

from __future__ import annotations

from service import mask_formats
from service.answers import FoundMask, mean_probability
from service.errors import InvalidField
from service.foreign_schemas import (
    RoboflowEcho,
    RoboflowJson,
    RoboflowPrediction,
    RoboflowPrompt,
    RoboflowPromptResult,
    RoboflowResponse,
    RoboflowRle,
)
from service.image_reference import read_image_reference
from service.request_parsing import (
    JSON,
    ImageUrl,
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

_HINT = 'send {"image": {"type": "base64", "value": ...}, "prompts": [{"type": "text", ...}]}'


class RoboflowTranslation:
    """Of one request. The query (`api_key` and the like) says nothing about the masks."""

    def __init__(self, raw: RawRequest, settings: Settings) -> None:
        self._raw, self._settings = raw, settings
        self._document: RoboflowJson

    def read(self) -> SegmentTask:
        refuse_encoding(self._raw)
        self._document = document = parse_json(self._raw.body, RoboflowJson, _HINT)
        faults = [
            fault
            for index, prompt in enumerate(document.prompts)
            for fault in _prompt_faults(index, prompt)
        ]
        if faults:
            raise InvalidField(faults)
        expressions = [prompt.text or "" for prompt in document.prompts]
        check_expressions(expressions, self._settings, "prompts")
        return SegmentTask(self._read_image(), tuple(expressions), validate_options({}))

    def write(self, found: Findings) -> Payload:
        results = [
            RoboflowPromptResult(
                prompt_index=index,
                echo=RoboflowEcho(prompt_index=index, text=each.finding.expression),
                predictions=self._predictions(index, each, found.spec.threshold),
            )
            for index, each in enumerate(found.masks)
        ]
        seconds = found.timings().total / 1000
        answer = RoboflowResponse(prompt_results=results, time=seconds)
        return Payload(answer.model_dump_json().encode(), JSON)

    def _read_image(self) -> bytes | ImageUrl:
        image = self._document.image
        if image.type == "base64":
            return decode_base64(image.value, "image.value")
        if image.type == "url":
            return read_image_reference(image.value, "image.value", self._settings)
        raise InvalidField([("image.type", f"{image.type[:64]!r} is not supported; send base64")])

    def _predictions(
        self, index: int, found: FoundMask, threshold: float
    ) -> list[RoboflowPrediction]:
        """The one mask, or none if it is empty or less sure than the request wants."""
        least = self._document.prompts[index].output_prob_thresh
        if least is None:
            least = self._document.output_prob_thresh or 0.0
        confidence = round(mean_probability(found, threshold), 6)
        if found.mask.area == 0 or confidence < least:
            return []
        if self._document.format == "rle":
            rle = RoboflowRle.model_construct(**mask_formats.encode_rle(found.mask))
            return [RoboflowPrediction(masks=rle, confidence=confidence, format="rle")]
        rings = mask_formats.contours(found.mask)
        return [
            RoboflowPrediction.model_construct(masks=rings, confidence=confidence, format="polygon")
        ]


def _prompt_faults(index: int, prompt: RoboflowPrompt) -> list[tuple[str, str]]:
    if prompt.boxes:
        return [(f"prompts.{index}.boxes", "boxes are not supported; say in text what to find")]
    if prompt.type not in (None, "text"):
        message = f"{prompt.type[:64]!r} is not supported; send text"
        return [(f"prompts.{index}.type", message)]
    return []
