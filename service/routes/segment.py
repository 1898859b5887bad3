"""`POST /segment`: an image and expressions in, a mask for each expression out."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response

from service.errors import ClientGone
from service.openapi import SEGMENT_OPERATION, segment_responses
from service.pipeline import Answer, Pipeline
from service.request_parsing import RawRequest
from service.schemas import SegmentResponse, Timings

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
    pipeline: Pipeline = request.app.state.pipeline
    accept = ",".join(request.headers.getlist("accept"))
    raw = await _read(request)
    working = pipeline.answer(raw, accept, request.state.times)
    del raw
    answer = await _while_connected(request, working)
    return Response(
        answer.body,
        media_type=answer.media_type,
        headers={"Server-Timing": _server_timing(answer.timings), "Vary": "Accept"},
    )


async def _read(request: Request) -> RawRequest:
    """The request with its whole body, which `service.middleware.BodyLimit` bounds."""
    return RawRequest(
        body=b"".join([chunk async for chunk in request.stream()]),
        content_type=request.headers.get("content-type", ""),
        content_encoding=request.headers.get("content-encoding", ""),
        query=request.query_params.multi_items(),
        timeout=request.headers.get("x-request-timeout"),
        arrived_at=request.state.arrived_at,
    )


async def _while_connected(request: Request, work: Coroutine[Any, Any, Answer]) -> Answer:
    """Run `work`; if the client goes away first, cancel it and raise ClientGone."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGone()
    finally:
        # Also when this task itself is cancelled: neither may live on without its request.
        leaving.cancel()
        working.cancel()
        await asyncio.wait((working, leaving))


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _server_timing(timings: Timings) -> str:
    return ", ".join(f"{stage};dur={value:.3f}" for stage, value in timings)
