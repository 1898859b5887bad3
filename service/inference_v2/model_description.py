"""The one model that is served, as the Open Inference Protocol V2 describes models."""

from __future__ import annotations

from service.backends.base import ModelSpec
from service.errors import RouteUnknown
from service.inference_v2.schemas import (
    ModelConfig,
    ModelMetadata,
    ServerMetadata,
    TensorConfig,
    TensorDescription,
)

IMAGE, EXPRESSION = "image", "expression"
MASK, SCORE, RLE = "mask", "score", "rle"
OUTPUTS = (MASK, SCORE, RLE)

_PLATFORM = "segvlm"
_EXTENSIONS = ["binary_tensor_data", "model_configuration", "parameters"]
_ANY = -1
_INPUT_TENSORS = (
    TensorDescription(name=IMAGE, datatype="BYTES", shape=[1]),
    TensorDescription(name=EXPRESSION, datatype="BYTES", shape=[_ANY]),
)
_OUTPUT_TENSORS = (
    TensorDescription(name=MASK, datatype="UINT8", shape=[_ANY, _ANY, _ANY]),
    TensorDescription(name=SCORE, datatype="FP32", shape=[_ANY]),
    TensorDescription(name=RLE, datatype="BYTES", shape=[_ANY]),
)
_CONFIG_TYPES = {"BYTES": "TYPE_STRING", "UINT8": "TYPE_UINT8", "FP32": "TYPE_FP32"}


def describe_server(version: str) -> ServerMetadata:
    """`version`: of the API."""
    return ServerMetadata(name="SegVLM", version=version, extensions=_EXTENSIONS)


def check_model(spec: ModelSpec, name: str, version: str | None) -> None:
    """Raise RouteUnknown unless `spec` is that model, in that version if one is named."""
    if name != spec.name:
        raise RouteUnknown(f"there is no model {name!r} here; the model is {spec.name!r}")
    if version is not None and version != spec.version:
        raise RouteUnknown(
            f"there is no version {version!r} of {name!r} here; the version is {spec.version!r}"
        )


def describe_model(spec: ModelSpec) -> ModelMetadata:
    return ModelMetadata(
        name=spec.name,
        versions=[spec.version],
        platform=_PLATFORM,
        inputs=list(_INPUT_TENSORS),
        outputs=list(_OUTPUT_TENSORS),
    )


def configure_model(spec: ModelSpec) -> ModelConfig:
    return ModelConfig(
        name=spec.name,
        platform=_PLATFORM,
        input=list(map(_configure, _INPUT_TENSORS)),
        output=list(map(_configure, _OUTPUT_TENSORS)),
    )


def _configure(tensor: TensorDescription) -> TensorConfig:
    return TensorConfig(
        name=tensor.name, data_type=_CONFIG_TYPES[tensor.datatype], dims=tensor.shape
    )
