"""What the client answers: masks as numpy arrays, errors as types, COCO JSON."""

from __future__ import annotations

import base64
import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask


class SegVLMError(Exception):
    """Anything that keeps the client from an answer."""


class Unreachable(SegVLMError):
    """No answer came: nobody listens, the connection broke, or the time was up."""


class MalformedAnswer(SegVLMError):
    """What answered is no SegVLM service, or not of this version."""


class ServiceRefused(SegVLMError):
    """The service answered with an error; docs/api.md lists the reasons.

    `status`: of HTTP. `reason`: the stable word of the problem, "" where a proxy answered.
    `request_id`: finds the lines in the service's log.
    """

    def __init__(self, status: int, reason: str, detail: str, request_id: str) -> None:
        super().__init__(f"{status} {reason}: {detail}" if reason else f"{status}: {detail}")
        self.status, self.reason, self.detail = status, reason, detail
        self.request_id = request_id


@dataclass(frozen=True)
class Found:
    """What one expression names in the photo.

    `score`: the IoU to be expected of the mask, 0 to 1. `area`: pixels. `box`: x0, y0, x1, y1 of
    the mask's pixel edges, None if it is empty. `rle`: COCO's compressed encoding. `probability`:
    float32 (H, W), 0 to 1 in steps of 1/255, if it was asked for.
    """

    expression: str
    truncated: bool
    score: float
    area: int
    box: tuple[int, int, int, int] | None
    rle: Mapping[str, Any]
    probability: NDArray[np.float32] | None = field(default=None, repr=False, compare=False)

    @functools.cached_property
    def mask(self) -> NDArray[np.bool_]:
        """bool (H, W), decoded when it is first asked for. Raises MalformedAnswer."""
        try:
            return np.asarray(coco_mask.decode(dict(self.rle))).astype(bool)
        except ValueError as error:
            raise MalformedAnswer(f"a mask cannot be decoded ({error})") from error


@dataclass(frozen=True)
class Segmentation:
    """The answer for one photo: one `Found` for each expression, in their order.

    `width`, `height`: pixels, EXIF orientation applied. `timings`: milliseconds of each stage.
    """

    model: str
    version: str
    width: int
    height: int
    results: tuple[Found, ...]
    timings: Mapping[str, float]


def parse_answer(document: Any) -> Segmentation:
    """The JSON of `POST /segment` with format=rle. Raises MalformedAnswer."""
    try:
        size = [int(document["image"]["height"]), int(document["image"]["width"])]
        return Segmentation(
            model=str(document["model"]["name"]),
            version=str(document["model"]["version"]),
            width=size[1],
            height=size[0],
            results=tuple(_found(result, size) for result in document["results"]),
            timings={name: float(value) for name, value in document["timings"].items()},
        )
    # Pillow's own among them: a broken PNG may be an OSError or a SyntaxError.
    except (LookupError, TypeError, ValueError, AttributeError, OSError, SyntaxError) as error:
        raise MalformedAnswer(
            f"the answer is not that of POST /segment ({error!r}); is the address a SegVLM "
            "service of this version?"
        ) from error


def _found(result: Any, size: list[int]) -> Found:
    mask, box, probability = result["mask"], result["bbox"], result.get("probability")
    rle = {"size": [int(side) for side in mask["size"]], "counts": mask["counts"]}
    area = int(result["area"])
    # Counting is cheap, and notices a foreign mask before anyone decodes it.
    if rle["size"] != size or int(coco_mask.area(rle)) != area:
        raise ValueError("a mask is not of the image's size or not of its own area")
    return Found(
        expression=str(result["expression"]),
        truncated=bool(result["truncated"]),
        score=float(result["score"]),
        area=area,
        box=None if box is None else (int(box[0]), int(box[1]), int(box[2]), int(box[3])),
        rle=rle,
        probability=None if probability is None else _probability(probability["data"], size),
    )


def _probability(data: str, size: list[int]) -> NDArray[np.float32]:
    with Image.open(BytesIO(base64.b64decode(data))) as picture:
        values = np.asarray(picture, dtype=np.float32) / np.float32(255)
    if list(values.shape) != size:
        raise ValueError("the probability map is not of the image's size")
    return values


def coco_document(answers: Iterable[tuple[str, Segmentation]]) -> dict[str, Any]:
    """Named answers as COCO's object detection JSON: a category for each expression.

    Annotations hold the mask as compressed RLE, `area`, `bbox` (x, y, width, height) and `score`;
    an expression that matches nothing has none.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories: dict[str, int] = {}
    for image_id, (name, answer) in enumerate(answers, start=1):
        images.append(
            {"id": image_id, "file_name": name, "width": answer.width, "height": answer.height}
        )
        for found in answer.results:
            category = categories.setdefault(found.expression, len(categories) + 1)
            if found.box is None:
                continue
            x0, y0, x1, y1 = found.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": category,
                    "segmentation": dict(found.rle),
                    "area": found.area,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": 0,
                    "score": found.score,
                }
            )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in categories.items()],
    }
