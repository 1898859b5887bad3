"""What the Open Inference Protocol V2 sends and answers, as types, with its binary extension.

Fields and parameters that are not named here are ignored, as the protocol wants.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

_STRICT = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)
_LONGEST_NAME = 64
_MOST_TENSORS = 16
_MOST_DIMENSIONS = 8


def _unsupported(remedy: str) -> BeforeValidator:
    def refuse(value: object) -> None:
        if value is not None:
            raise PydanticCustomError("unsupported", "not supported; {remedy}", {"remedy": remedy})

    return BeforeValidator(refuse)


NoSharedMemory = Annotated[None, _unsupported("send tensors in the body of the request")]
Size = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(max_length=_LONGEST_NAME)]


class InputParameters(BaseModel):
    """Of one input."""

    model_config = _STRICT

    binary_data_size: Size | None = Field(
        None, description="Bytes of this tensor behind the JSON, where it has no `data`."
    )
    content_type: str | None = Field(
        None, description="`base64`: the strings in `data` are base64. An image's always are."
    )
    shared_memory_region: NoSharedMemory = None


class InferInput(BaseModel):
    """One tensor of the request."""

    model_config = _STRICT

    name: Name = Field(description="`image` or `expression`.")
    shape: list[Size] = Field(
        max_length=_MOST_DIMENSIONS,
        description="`image`: [1]; `expression`: [n] or [1, n].",
    )
    datatype: Name = Field(description="BYTES.")
    parameters: InputParameters | None = None
    data: list[Any] | None = Field(
        None, description="Strings: the image file in base64; what to find."
    )


class OutputParameters(BaseModel):
    """Of one output."""

    model_config = _STRICT

    binary_data: bool | None = Field(
        None, description="Behind the JSON rather than in it. Default: binary_data_output."
    )
    classification: Annotated[None, _unsupported("masks have no classes")] = None
    shared_memory_region: NoSharedMemory = None


class RequestedOutput(BaseModel):
    """A tensor that the answer shall have."""

    model_config = _STRICT

    name: Name = Field(description="`mask`, `score` or `rle`.")
    parameters: OutputParameters | None = None


class InferParameters(BaseModel):
    """Of the whole request."""

    model_config = _STRICT

    threshold: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None,
        description="A pixel belongs to the mask if its probability is above this. "
        "Default: the model's own.",
    )
    timeout: Size | None = Field(
        None,
        description="Microseconds within which the answer is wanted; 0: as the service has it.",
    )
    binary_data_output: bool | None = Field(
        None, description="Whether outputs that say nothing themselves come behind the JSON."
    )


class InferRequest(BaseModel):
    """The JSON of `/infer`."""

    model_config = _STRICT

    id: str | None = Field(None, max_length=1024, description="Comes back in the answer.")
    parameters: InferParameters | None = None
    inputs: list[InferInput] = Field(max_length=_MOST_TENSORS)
    outputs: list[RequestedOutput] | None = Field(
        None, max_length=_MOST_TENSORS, description="Default: all."
    )


class InferOutput(BaseModel):
    """One tensor of the answer, with `data` or with `parameters.binary_data_size`."""

    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, int] | None = None
    data: list[Any] | None = None


class InferResponse(BaseModel):
    """The JSON of the answer."""

    id: str | None = None
    model_name: str
    model_version: str
    outputs: list[InferOutput]


class TensorDescription(BaseModel):
    """A tensor that the model takes or answers; -1 is any length."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadata(BaseModel):
    """What the model is."""

    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorDescription]
    outputs: list[TensorDescription]


class TensorConfig(BaseModel):
    """The same tensor in the words of Triton's configuration."""

    name: str
    data_type: str
    dims: list[int]


class ModelConfig(BaseModel):
    """What Triton's tools ask before they send anything; 0: no batch dimension."""

    name: str
    platform: str
    max_batch_size: Literal[0] = 0
    input: list[TensorConfig]
    output: list[TensorConfig]


class ServerMetadata(BaseModel):
    """What the server is."""

    name: str
    version: str
    extensions: list[str]


class Live(BaseModel):
    """Whether the process is alive; `error` says why not."""

    live: bool
    error: str | None = None


class Ready(BaseModel):
    """Whether requests should be sent here; `error` says why not."""

    ready: bool
    error: str | None = None


class ModelReady(Ready):
    """The same of the model."""

    name: str


class InferError(BaseModel):
    """Every error of this protocol."""

    error: str
