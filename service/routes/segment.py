"""`POST /segment`: an image and expressions in, a mask for each expression out."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from service.exchange import exchange, read_body
from service.openapi import SEGMENT_OPERATION, segment_responses
from service.request_parsing import RawRequest
from service.schemas import SegmentResponse
from service.segment_translation import SegmentTranslation

router = APIRouter()


@router.post(
    "/segment",
    summary="Segment what each expression names",
    response_model=SegmentResponse,
    responses=segment_responses(),
    openapi_extra=SEGMENT_OPERATION,
)
async def segment(request: Request) -> Response:
    """One mask for each expression, in the pixels of the image as a person sees it.

    EXIF orientation is applied before anything else. Several expressions for one image cost less
    in one request than in several. With `Accept: image/png` and one expression the answer is the
    mask itself.
    """
    raw = RawRequest(
        body=await read_body(request),
        content_type=request.headers.get("content-type", ""),
        content_encoding=request.headers.get("content-encoding", ""),
        query=request.query_params.multi_items(),
    )
    accept = ",".join(request.headers.getlist("accept"))
    settings = request.app.state.settings
    response = await exchange(request, SegmentTranslation(raw, accept, settings))
    response.headers["Vary"] = "Accept"
    return response
