"""Logits to the bytes of an answer. CPU work over whole images: not for the event loop.

One expression at a time, so that a large image costs the memory of one probability map.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model.calibration import ScoreMap, agreement
from model.preprocess import Letterbox, restore_probability, restore_window, sigmoid
from service import mask_formats
from service.backends.base import ModelSpec
from service.placed_mask import PlacedMask
from service.schemas import (
    ImageInfo,
    MaskFormat,
    ModelInfo,
    PngMask,
    PolygonRegion,
    PolygonsMask,
    ProbabilityMap,
    RleMask,
    SegmentOptions,
    SegmentResponse,
    SegmentResult,
    Timings,
)
from service.stages import StageTimes


@dataclass(frozen=True, slots=True)
class Finding:
    """What the model said of one expression: logits float32 (S/4, S/4)."""

    expression: str
    truncated: bool
    logits: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FoundMask:
    """A finding in the photo's pixels, and its score.

    `score`: the IoU to be expected of it where the model's bundle has measured that (at its own
    threshold), else the mean probability inside the mask; 0.0 if it is empty.
    """

    finding: Finding
    geometry: Letterbox
    mask: PlacedMask
    score: float


def restore(
    finding: Finding, geometry: Letterbox, threshold: float, score_map: ScoreMap | None = None
) -> FoundMask:
    """Undo the letterbox and apply the threshold: above it is inside."""
    probability = sigmoid(finding.logits)
    window = restore_window(probability, geometry, threshold)
    inside = window.probability > threshold
    mask = PlacedMask(inside, window.top, window.left, geometry.height, geometry.width)
    if not inside.any():
        score = 0.0
    elif score_map is None:
        score = _mean_inside(window.probability, inside)
    else:
        score = score_map(agreement(probability, threshold))
    return FoundMask(finding, geometry, mask, score)


def mean_probability(found: FoundMask, threshold: float) -> float:
    """Inside a mask that was restored at `threshold`; 0.0 if it is empty. Resizes once more."""
    if not found.mask.area:
        return 0.0
    window = restore_window(sigmoid(found.finding.logits), found.geometry, threshold)
    return _mean_inside(window.probability, found.mask.window)


def describe(found: FoundMask, options: SegmentOptions) -> SegmentResult:
    """One entry of `results`."""
    probability = None
    if options.include_probability:
        whole = restore_probability(sigmoid(found.finding.logits), found.geometry)
        probability = ProbabilityMap(data=_base64(mask_formats.encode_probability(whole)))
    return SegmentResult(
        expression=found.finding.expression,
        truncated=found.finding.truncated,
        score=round(found.score, 6),
        area=found.mask.area,
        bbox=found.mask.box(),
        mask=encode_mask(found.mask, options.format),
        probability=probability,
    )


def encode_mask(
    mask: PlacedMask, mask_format: MaskFormat
) -> RleMask | PngMask | PolygonsMask | None:
    """A mask in one of the forms that JSON can hold."""
    match mask_format:
        case "rle":
            rle = mask_formats.encode_rle(mask)
            return RleMask(size=rle["size"], counts=rle["counts"])
        case "png":
            return PngMask(data=_base64(mask_formats.encode_png(mask)))
        case "polygons":
            return PolygonsMask(
                polygons=[
                    PolygonRegion.model_construct(exterior=region.exterior, holes=region.holes)
                    for region in mask_formats.polygons(mask)
                ]
            )
        case "none":
            return None
        case "overlay":
            raise AssertionError("an overlay is a picture of its own, not a mask's form")


def draw_overlay(photo: Image.Image, masks: Iterator[FoundMask], media_type: str) -> bytes:
    """The photo, RGB, with every mask on it, as `media_type`; it is drawn on."""
    overlay = mask_formats.Overlay(photo)
    for found in masks:
        overlay.add(found.mask, f"{found.finding.expression} {found.score:.2f}")
    return overlay.encode(media_type)


def render_json(
    spec: ModelSpec, geometry: Letterbox, results: Sequence[SegmentResult], timings: Timings
) -> bytes:
    """The JSON document, UTF-8."""
    response = SegmentResponse(
        model=ModelInfo(name=spec.name, version=spec.version),
        image=ImageInfo(width=geometry.width, height=geometry.height),
        results=list(results),
        timings=timings,
    )
    # A probability that nobody asked for is left out; a mask of `none` stays, as null.
    return response.model_dump_json(
        exclude={"results": {"__all__": {"probability"}}}
        if all(result.probability is None for result in results)
        else None
    ).encode()


def timings(times: StageTimes, total: float, postprocess: float) -> Timings:
    """The stages in milliseconds; `total` and the running `postprocess` in seconds."""
    stages = ("decode", "preprocess", "queue", "inference")
    return Timings(
        **{name: _milliseconds(times.seconds(name)) for name in stages},
        postprocess=_milliseconds(postprocess),
        total=_milliseconds(total),
    )


def _mean_inside(probability: NDArray[np.float32], inside: NDArray[np.bool_]) -> float:
    return float(probability[inside].mean(dtype=np.float64))


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 3)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
