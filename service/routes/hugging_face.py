"""The protocol of Hugging Face's inference endpoints, for image segmentation."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.exchange import exchange, read_request
from service.foreign_schemas import HuggingFaceJson, HuggingFaceSegment, NamedError
from service.hugging_face_translation import HuggingFaceTranslation
from service.openapi import foreign_body, foreign_responses

router = APIRouter(prefix="/hf", tags=["Hugging Face"])

_EXPRESSION = {
    "name": "expression",
    "in": "query",
    "description": "What to find; repeat it for several.",
    "schema": {"type": "array", "items": {"type": "string"}},
    "example": ["the dog"],
}


@router.post(
    "/image-segmentation",
    summary="Segment an image as Hugging Face's clients ask for it",
    response_model=list[HuggingFaceSegment],
    responses=foreign_responses(NamedError),
    openapi_extra={"parameters": [_EXPRESSION], **foreign_body(HuggingFaceJson, "image/*")},
)
async def image_segmentation(request: Request) -> Response:
    """For `InferenceClient("http://.../hf/image-segmentation?expression=the+dog")`."""
    raw = await read_request(request)
    return await exchange(request, HuggingFaceTranslation(raw, request.app.state.settings))
