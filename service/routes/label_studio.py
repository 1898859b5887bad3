"""The protocol of Label Studio's machine learning backends."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from service.engine import Engine
from service.exchange import exchange_each, read_request
from service.foreign_schemas import (
    LabelStudioEvent,
    LabelStudioHealth,
    LabelStudioModel,
    LabelStudioPredict,
    LabelStudioPredictions,
    LabelStudioReceipt,
    LabelStudioSetup,
    LabelStudioVersions,
    NamedError,
)
from service.label_studio_translation import (
    PredictRequest,
    model_version,
    parse_event,
    parse_setup,
)
from service.openapi import foreign_body, foreign_responses

router = APIRouter(prefix="/label-studio", tags=["Label Studio"])


@router.post(
    "/predict",
    summary="Predict brush regions for tasks",
    response_model=LabelStudioPredictions,
    responses=foreign_responses(NamedError),
    openapi_extra=foreign_body(LabelStudioPredict),
)
async def predict(request: Request) -> Response:
    """What the annotator typed is found; without text, each label of the brush is."""
    raw = await read_request(request)
    tasks = PredictRequest(raw, request.app.state.settings)
    payloads = await exchange_each(request, tasks.predictions(), "tasks")
    joined = b",".join(payload.body for payload in payloads)
    return Response(b'{"results":[' + joined + b"]}", media_type="application/json")


@router.post(
    "/setup",
    summary="Connect a project",
    responses=foreign_responses(NamedError),
    openapi_extra=foreign_body(LabelStudioSetup),
)
async def setup(request: Request) -> LabelStudioModel:
    """Refuses a labelling configuration in which no mask could be drawn; keeps nothing."""
    await run_in_threadpool(parse_setup, await read_request(request))
    return LabelStudioModel(model_version=_served_version(request))


@router.get("/versions", summary="The model version that is served")
async def versions(request: Request) -> LabelStudioVersions:
    """One: a process serves one model."""
    return LabelStudioVersions(versions=[_served_version(request)])


@router.get(
    "/health",
    summary="Can predictions be asked for?",
    response_model=LabelStudioHealth,
    responses={503: {"model": LabelStudioHealth, "description": "As `/readyz` says it."}},
)
async def health(request: Request, response: Response) -> LabelStudioHealth:
    """UP while `/readyz` answers 200."""
    if request.app.state.engine.condition == "ok":
        return LabelStudioHealth(status="UP")
    response.status_code = 503
    return LabelStudioHealth(status="DOWN")


@router.post(
    "/webhook",
    summary="Hear of an event",
    status_code=201,
    responses=foreign_responses(NamedError),
    openapi_extra=foreign_body(LabelStudioEvent),
)
async def webhook(request: Request) -> LabelStudioReceipt:
    """Nothing happens: annotations do not train the model that is served."""
    await run_in_threadpool(parse_event, await read_request(request))
    return LabelStudioReceipt(status="ok")


def _served_version(request: Request) -> str:
    engine: Engine = request.app.state.engine
    return model_version(engine.spec)
