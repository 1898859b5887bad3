"""Probes and metrics. A busy process is alive and ready, a draining one is alive only."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

from service.engine import Engine
from service.schemas import Health

router = APIRouter()


@router.get(
    "/healthz",
    summary="Is the process alive?",
    response_model=Health,
    responses={503: {"model": Health, "description": "The model's worker died; restart."}},
)
async def healthz(request: Request, response: Response) -> Health:
    """200 while a restart would not help: also when busy, warming up or draining."""
    engine: Engine = request.app.state.engine
    if engine.alive:
        return Health(status="ok")
    response.status_code = 503
    return Health(status="stopped")


@router.get(
    "/readyz",
    summary="Should requests be sent here?",
    response_model=Health,
    responses={503: {"model": Health, "description": "Warming up, draining or stopped."}},
)
async def readyz(request: Request, response: Response) -> Health:
    """200 once the model is warmed up, until the process is told to stop."""
    engine: Engine = request.app.state.engine
    condition = engine.condition
    if condition != "ok":
        response.status_code = 503
    return Health(status=condition)


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """The text exposition format."""
    engine: Engine = request.app.state.engine
    return Response(engine.metrics.exposition(), headers={"Content-Type": CONTENT_TYPE_LATEST})
