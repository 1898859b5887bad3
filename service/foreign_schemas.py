"""What the clients of foreign protocols send and get, as types; unknown fields are ignored.

Their own names, even where ours differ. Nothing here is needed by `POST /segment`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from service.schemas import BASE64, SCORE


def _unsupported(remedy: str) -> BeforeValidator:
    """For a field that only null may fill: anything else is answered with `remedy`."""

    def refuse(value: object) -> None:
        if value is not None:
            raise PydanticCustomError("unsupported", "not supported; {remedy}", {"remedy": remedy})

    return BeforeValidator(refuse)


Share = Annotated[float, Field(ge=0, le=1)]
"""A probability or another part of a whole."""


# -- Hugging Face: image segmentation ---------------------------------------------------------


class HuggingFaceParameters(BaseModel):
    """The task's own parameters, and ours: the expressions."""

    model_config = ConfigDict(extra="forbid")

    expression: str | list[str] = Field(
        default_factory=list, description="What to find, one or several; or in the query."
    )
    threshold: Share | None = Field(
        default=None,
        description="Leave out masks whose score is below this. Default: none is left out.",
    )
    mask_threshold: Share | None = Field(
        default=None,
        description="A pixel belongs to the mask if its probability is above this. "
        "Default: the model's own.",
    )
    overlap_mask_area_threshold: Annotated[
        None, _unsupported("masks are whole regions and may overlap, so leave it out")
    ] = None
    subtask: Literal["semantic"] | None = Field(
        default=None, description="A mask is the whole region that an expression names."
    )


class HuggingFaceJson(BaseModel):
    """The body where it is JSON and not the image itself."""

    inputs: str = Field(
        description="The image file in base64.", min_length=1, json_schema_extra=BASE64
    )
    parameters: HuggingFaceParameters | None = None


class HuggingFaceSegment(BaseModel):
    """One mask of the answer, which is a list of these."""

    label: str = Field(description="The expression.")
    score: float = Field(description=SCORE)
    mask: str = Field(description="An 8-bit greyscale PNG in base64, 255 inside, else 0.")


class NamedError(BaseModel):
    """An error of the Hugging Face and the Label Studio protocol."""

    error: str
    error_type: str


# -- Label Studio: a machine learning backend --------------------------------------------------


class LabelStudioText(BaseModel):
    """The part of a region's value that holds typed text."""

    text: str | list[str] = Field(default_factory=list)


class LabelStudioRegion(BaseModel):
    """A region that the annotator made; only text regions are of use here."""

    value: LabelStudioText = Field(default_factory=LabelStudioText)


class LabelStudioContext(BaseModel):
    """What the annotator has just done."""

    result: list[LabelStudioRegion] = Field(default_factory=list)


class LabelStudioParams(BaseModel):
    """What comes beside the tasks."""

    context: LabelStudioContext | None = None


class LabelStudioTask(BaseModel):
    """One task; `data` has the image under the name that the labelling configuration gives it."""

    data: dict[str, Any]


class LabelStudioPredict(BaseModel):
    """The body of `/predict`."""

    tasks: list[LabelStudioTask] = Field(min_length=1, max_length=1000)
    label_config: str
    params: LabelStudioParams | None = None


class LabelStudioSetup(BaseModel):
    """The body of `/setup`; `schema` is the labelling configuration."""

    label_config: str = Field("", alias="schema")


class LabelStudioEvent(BaseModel):
    """The body of `/webhook`."""

    action: str


class LabelStudioPrediction(BaseModel):
    """What is predicted for one task: `result` holds regions of the labelling configuration."""

    result: list[dict[str, Any]]
    score: float
    model_version: str


class LabelStudioPredictions(BaseModel):
    """The answer of `/predict`: one for each task, in their order."""

    results: list[LabelStudioPrediction]


class LabelStudioModel(BaseModel):
    """The answer of `/setup`."""

    model_version: str


class LabelStudioVersions(BaseModel):
    """The answer of `/versions`."""

    versions: list[str]


class LabelStudioHealth(BaseModel):
    """The answer of `/health`."""

    status: Literal["UP", "DOWN"]


class LabelStudioReceipt(BaseModel):
    """The answer of `/webhook`."""

    status: Literal["ok"]


# -- Roboflow: SAM 3's concept segmentation ----------------------------------------------------


class RoboflowImage(BaseModel):
    """An image file in base64."""

    type: str = Field(json_schema_extra={"enum": ["base64"]})
    value: str = Field(min_length=1, json_schema_extra=BASE64)


class RoboflowPrompt(BaseModel):
    """What to find."""

    # Wider than what the document says, so that the translation refuses the rest in words.
    model_config = ConfigDict(json_schema_extra={"required": ["text"]})

    type: str | None = Field(None, json_schema_extra={"enum": ["text", None]})
    text: str | None = None
    boxes: list[Any] | None = Field(None, json_schema_extra={"maxItems": 0})
    output_prob_thresh: Share | None = None


class RoboflowJson(BaseModel):
    """The body."""

    image: RoboflowImage
    prompts: list[RoboflowPrompt] = Field(min_length=1)
    format: Literal["polygon", "json", "rle"] = Field(
        "polygon", description="`json` is another name of `polygon`."
    )
    output_prob_thresh: Share | None = Field(
        0.5, description="Leave out masks whose confidence is below this; a prompt's own wins."
    )
    nms_iou_threshold: Annotated[
        None, _unsupported("there is one mask for each prompt and they may overlap: leave it out")
    ] = None


class RoboflowRle(BaseModel):
    """COCO's compressed run lengths."""

    size: list[int] = Field(description="Height and width.")
    counts: str


class RoboflowPrediction(BaseModel):
    """One mask."""

    masks: list[list[tuple[int, int]]] | RoboflowRle
    confidence: float = Field(
        description="Mean probability inside the mask: how sure the model is, not its expected IoU."
    )
    format: Literal["polygon", "rle"]


class RoboflowEcho(BaseModel):
    """The prompt again."""

    prompt_index: int
    type: Literal["text"] = "text"
    text: str
    num_boxes: int = 0


class RoboflowPromptResult(BaseModel):
    """What was found for one prompt: one mask, or none."""

    prompt_index: int
    echo: RoboflowEcho
    predictions: list[RoboflowPrediction]


class RoboflowResponse(BaseModel):
    """The answer: one for each prompt, in their order."""

    prompt_results: list[RoboflowPromptResult]
    time: float = Field(description="Seconds that the answer took.")


class RoboflowError(BaseModel):
    """An error of the Roboflow protocol."""

    message: str
    error_type: str


FOREIGN_SCHEMAS: tuple[type[BaseModel], ...] = (
    HuggingFaceJson,
    LabelStudioEvent,
    LabelStudioPredict,
    LabelStudioSetup,
    NamedError,
    RoboflowError,
    RoboflowJson,
)
"""Those that the OpenAPI document names only in references."""
