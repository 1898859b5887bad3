"""The protocol of Roboflow's inference server, for concepts named in text."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.exchange import exchange, read_request
from service.foreign_schemas import RoboflowError, RoboflowJson, RoboflowResponse
from service.openapi import foreign_body, foreign_responses
from service.roboflow_translation import RoboflowTranslation

router = APIRouter(prefix="/sam3", tags=["Roboflow"])


@router.post(
    "/concept_segment",
    summary="Segment concepts as Roboflow's clients ask for it",
    response_model=RoboflowResponse,
    responses=foreign_responses(RoboflowError),
    openapi_extra=foreign_body(RoboflowJson),
)
async def concept_segment(request: Request) -> Response:
    """For `InferenceHTTPClient(...).sam3_concept_segment`; the model that answers is ours."""
    raw = await read_request(request)
    return await exchange(request, RoboflowTranslation(raw, request.app.state.settings))
