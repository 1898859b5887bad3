"""One HTTP request through the pipeline, whatever its protocol: read, answer, notice who left."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TypeVar

from fastapi import Request, Response

from service.errors import ClientGone
from service.pipeline import Answer, Pipeline
from service.request_parsing import parse_timeout
from service.schemas import Timings
from service.translation import Translation

Value = TypeVar("Value")


async def read_body(request: Request) -> bytes:
    """The whole body, which `service.middleware.BodyLimit` bounds."""
    return b"".join([chunk async for chunk in request.stream()])


async def exchange(request: Request, translation: Translation) -> Response:
    """Answer a request whose body has been read. Raises what `Pipeline.answer` does, ClientGone."""
    pipeline: Pipeline = request.app.state.pipeline
    asked = parse_timeout(request.headers.get("x-request-timeout"))
    state = request.state
    working = pipeline.answer(translation, state.times, asked, state.arrived_at)
    answer: Answer = await while_connected(request, working)
    payload = answer.payload
    return Response(
        payload.body,
        media_type=payload.media_type,
        headers={"Server-Timing": _server_timing(answer.timings), **payload.headers},
    )


async def while_connected(request: Request, work: Coroutine[object, object, Value]) -> Value:
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
