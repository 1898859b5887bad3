"""The Open Inference Protocol V2 of KServe and Triton, under `/v2`."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from service.backends.base import ModelSpec
from service.engine import Engine
from service.exchange import exchange, read_body
from service.inference_v2 import schemas
from service.inference_v2.infer_parsing import RawInfer
from service.inference_v2.infer_translation import InferTranslation
from service.inference_v2.model_description import (
    check_model,
    configure_model,
    describe_model,
    describe_server,
)
from service.inference_v2.tensors import HEADER_LENGTH
from service.openapi import foreign_body, foreign_responses

router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])

_UNKNOWN: dict[int | str, dict[str, Any]] = {
    404: {"model": schemas.InferError, "description": "`not_found`: no such model or version."}
}


async def _served_model(request: Request, model: str, version: str | None = None) -> ModelSpec:
    """The model that a path names. Raises RouteUnknown."""
    engine: Engine = request.app.state.engine
    check_model(engine.spec, model, version)
    return engine.spec


Served = Annotated[ModelSpec, Depends(_served_model)]


@router.get("", summary="What the server is")
async def server_metadata(request: Request) -> schemas.ServerMetadata:
    """Its name, its version and the extensions of the protocol that it has."""
    return describe_server(request.app.version)


@router.get(
    "/health/live",
    summary="Is the process alive?",
    responses={503: {"model": schemas.Live, "description": "The model's worker died; restart."}},
    response_model_exclude_none=True,
)
async def live(request: Request, response: Response) -> schemas.Live:
    """As `/healthz`."""
    engine: Engine = request.app.state.engine
    if engine.alive:
        return schemas.Live(live=True)
    response.status_code = 503
    return schemas.Live(live=False, error=engine.condition)


@router.get(
    "/health/ready",
    summary="Should requests be sent here?",
    responses={503: {"model": schemas.Ready, "description": "Warming up, draining or stopped."}},
    response_model_exclude_none=True,
)
async def ready(request: Request, response: Response) -> schemas.Ready:
    """As `/readyz`."""
    condition = request.app.state.engine.condition
    if condition == "ok":
        return schemas.Ready(ready=True)
    response.status_code = 503
    return schemas.Ready(ready=False, error=condition)


@router.get("/models/{model}", summary="What the model takes and answers", responses=_UNKNOWN)
@router.get(
    "/models/{model}/versions/{version}",
    summary="What a version of the model takes and answers",
    responses=_UNKNOWN,
)
async def model_metadata(spec: Served) -> schemas.ModelMetadata:
    """Its tensors. The model's name is the bundle's."""
    return describe_model(spec)


_READY = {**_UNKNOWN, 503: {"model": schemas.ModelReady, "description": "Not to be used now."}}


@router.get(
    "/models/{model}/ready",
    summary="Is the model ready?",
    responses=_READY,
    response_model_exclude_none=True,
)
@router.get(
    "/models/{model}/versions/{version}/ready",
    summary="Is the version of the model ready?",
    responses=_READY,
    response_model_exclude_none=True,
)
async def model_ready(request: Request, response: Response, spec: Served) -> schemas.ModelReady:
    """As `/v2/health/ready`: there is one model."""
    told = await ready(request, response)
    return schemas.ModelReady(name=spec.name, **told.model_dump())


@router.get("/models/{model}/config", summary="Triton's configuration", responses=_UNKNOWN)
@router.get(
    "/models/{model}/versions/{version}/config",
    summary="Triton's configuration of a version",
    responses=_UNKNOWN,
)
async def model_config(spec: Served) -> schemas.ModelConfig:
    """What perf_analyzer reads."""
    return configure_model(spec)


_INFER: dict[str, Any] = {
    "dependencies": [Depends(_served_model)],
    "response_model": schemas.InferResponse,
    "responses": {**_UNKNOWN, **foreign_responses(schemas.InferError)},
    "openapi_extra": {
        "parameters": [
            {
                "name": HEADER_LENGTH,
                "in": "header",
                "description": "Bytes of the JSON, where tensors follow it.",
                "schema": {"type": "integer", "minimum": 1},
            }
        ],
        **foreign_body(schemas.InferRequest, "application/octet-stream"),
    },
}


@router.post("/models/{model}/infer", summary="Segment what each expression names", **_INFER)
@router.post("/models/{model}/versions/{version}/infer", summary="Segment with a version", **_INFER)
async def infer(request: Request) -> Response:
    """Inputs `image` and `expression`, outputs `mask`, `score` and `rle`, in JSON or behind it."""
    headers = request.headers
    raw = RawInfer(
        body=await read_body(request),
        content_encoding=headers.get("content-encoding", ""),
        header_length=headers.get(HEADER_LENGTH),
    )
    accepted = ",".join(headers.getlist("accept-encoding"))
    settings, reserve = request.app.state.settings, request.state.memory.take
    return await exchange(request, InferTranslation(raw, accepted, settings, reserve))
