"""Everything that a client sends to or gets from `POST /segment`, as types."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

MaskFormat = Literal["rle", "png", "polygons", "none", "overlay"]
Point = tuple[int, int]

IMAGE_URL = "Instead of the image: where it lies, https only; for hosts that the operator allowed."
BASE64: JsonDict = {"contentEncoding": "base64", "format": "byte"}

SCORE = (
    "The IoU to be expected of the mask, measured at the model's own threshold, at another an "
    "estimate; the mean probability inside it for a model that was not measured; 0 if it is empty."
)
_EDGES = "Coordinates are of pixel edges: the pixel in row 0, column 0 spans (0, 0) to (1, 1)."


def _may_be_missing(more: JsonDict) -> Callable[[JsonDict], None]:
    """Of a field whose default stands for nothing and is no value that may be sent."""

    def describe(schema: JsonDict) -> None:
        schema.pop("default")
        schema.update(more)

    return describe


class SegmentOptions(BaseModel):
    """The options, equal in the query, in a form and in JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: MaskFormat = Field(
        "rle",
        description="Form of each mask: COCO compressed RLE, 1-bit PNG, polygons, none at all; or "
        "`overlay`, which answers one picture: the photo with the masks drawn on it.",
    )
    threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        description="A pixel belongs to the mask if its probability is above this. "
        "Default: the model's own.",
    )
    include_probability: bool = Field(
        False, strict=True, description="Also answer the probability of every pixel."
    )


class SegmentJson(SegmentOptions):
    """The JSON body."""

    model_config = ConfigDict(
        strict=True,
        json_schema_extra={"oneOf": [{"required": ["image"]}, {"required": ["image_url"]}]},
    )

    image: str = Field(
        "",
        description="The image file in base64; the prefix of a data URL may stay.",
        min_length=1,
        json_schema_extra=_may_be_missing(BASE64),
    )
    image_url: str = Field(
        "", description=IMAGE_URL, min_length=1, json_schema_extra=_may_be_missing({})
    )
    expressions: list[str] = Field(description="What to find, one mask for each.", min_length=1)


class StreamConfiguration(SegmentOptions):
    """The first message of a stream, and any later one that changes what is asked."""

    format: Literal["rle", "png", "polygons", "none"] = Field(
        "rle", description="Form of each mask: COCO compressed RLE, 1-bit PNG, polygons, none."
    )
    expressions: list[str] = Field(description="What to find in each frame.", min_length=1)
    newest: bool = Field(
        True,
        description="Of the frames that wait for the model only the newest is kept. False: every "
        "frame is answered, and no more are read while others wait.",
    )


class ModelInfo(BaseModel):
    """Which model answered."""

    name: str
    version: str


class ImageInfo(BaseModel):
    """The image's size in pixels after its EXIF orientation was applied."""

    width: int
    height: int


class RleMask(BaseModel):
    """COCO's compressed run-length encoding; `pycocotools.mask.decode` takes it as it is."""

    format: Literal["rle"] = "rle"
    size: Annotated[list[int], Field(description="Height and width.")]
    counts: str


class PngMask(BaseModel):
    """A 1-bit greyscale PNG of the image's size, white where the mask is."""

    format: Literal["png"] = "png"
    data: str = Field(description="The PNG file in base64.")


class PolygonRegion(BaseModel):
    """One connected region: its outline, minus its holes. Rings are not closed explicitly."""

    exterior: list[Point]
    holes: list[list[Point]]


class PolygonsMask(BaseModel):
    """The mask's exact outlines along pixel edges, as [x, y] points."""

    format: Literal["polygons"] = "polygons"
    polygons: list[PolygonRegion] = Field(description=_EDGES)


class ProbabilityMap(BaseModel):
    """An 8-bit greyscale PNG of the image's size: probability = value / 255."""

    format: Literal["png"] = "png"
    data: str = Field(description="The PNG file in base64.")


class SegmentResult(BaseModel):
    """What was found for one expression."""

    expression: str
    truncated: bool = Field(description="The expression was too long and its end was not read.")
    score: float = Field(description=SCORE)
    area: int = Field(description="Pixels in the mask.")
    bbox: tuple[int, int, int, int] | None = Field(
        description=f"x0, y0, x1, y1 of the mask; null if it is empty. {_EDGES}"
    )
    mask: Annotated[RleMask | PngMask | PolygonsMask, Field(discriminator="format")] | None
    probability: ProbabilityMap | None = Field(None, description="Only if it was asked for.")


class Timings(BaseModel):
    """Milliseconds that each stage took; also in the header Server-Timing."""

    decode: float = Field(description="Image bytes to pixels.")
    preprocess: float = Field(description="Letterbox, content hash, tokens.")
    queue: float = Field(description="Waiting for the model.")
    inference: float = Field(description="The model, in the batches that held this request.")
    postprocess: float = Field(description="Logits to masks in the asked-for form.")
    total: float = Field(description="From the last byte of the body on.")


class SegmentResponse(BaseModel):
    """The answer to `POST /segment`: one result for each expression, in their order."""

    model: ModelInfo
    image: ImageInfo
    results: list[SegmentResult]
    timings: Timings


class FieldFault(BaseModel):
    """One field of a request and what is wrong with it."""

    field: str
    message: str


class Problem(BaseModel):
    """An error, RFC 9457. `detail` says what to do; `reason` is stable and for programs."""

    type: str
    title: str
    status: int
    detail: str
    reason: str
    request_id: str
    errors: list[FieldFault] | None = Field(None, description="With 422: every invalid field.")
    limit: int | None = Field(None, description="With 413: how much is accepted.")


class Health(BaseModel):
    """The answer of the probes."""

    status: Literal["ok", "warming_up", "draining", "stopped"]
