"""One HTTP request through the pipeline, whatever its protocol: read, answer, notice who left."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import TypeVar

from fastapi import Request, Response

from service.errors import BadImage, ClientGone, ImageUnreachable, ImageUrlRefused, TooLarge
from service.pipeline import Answer, Pipeline
from service.request_parsing import RawRequest, parse_timeout
from service.schemas import Timings
from service.stages import StageTimes
from service.translation import Payload, Translation

Value = TypeVar("Value")


async def read_body(request: Request) -> bytes:
    """The whole body, which `service.middleware.BodyLimit` bounds."""
    return b"".join([chunk async for chunk in request.stream()])


async def read_request(request: Request) -> RawRequest:
    """The body, and of the rest what a translation may look at."""
    return RawRequest(
        body=await read_body(request),
        content_type=request.headers.get("content-type", ""),
        content_encoding=request.headers.get("content-encoding", ""),
        query=request.query_params.multi_items(),
    )


async def exchange(request: Request, translation: Translation) -> Response:
    """Answer a request whose body has been read. Raises what `Pipeline.answer` does, ClientGone."""
    pipeline: Pipeline = request.app.state.pipeline
    asked = parse_timeout(request.headers.get("x-request-timeout"))
    state = request.state
    working = pipeline.answer(translation, state.times, asked, state.arrived_at)
    answer: Answer = await while_connected(request, working)
    payload = answer.payload
    state.memory.take(len(payload.body))  # until it is sent
    return Response(
        payload.body,
        media_type=payload.media_type,
        headers={"Server-Timing": _server_timing(answer.timings), **payload.headers},
    )


async def exchange_each(
    request: Request, translations: Iterable[Translation], field: str
) -> list[Payload]:
    """Answer several images of one request, one after another, each with the full time.

    Raises what `exchange` does, at the first that fails; a bad image is named by its number in
    `field`.
    """
    pipeline: Pipeline = request.app.state.pipeline
    asked = parse_timeout(request.headers.get("x-request-timeout"))
    state = request.state

    async def answer_each() -> list[Payload]:
        payloads = []
        for index, translation in enumerate(translations):
            times = StageTimes(state.times.clock)
            try:
                answer = await pipeline.answer(translation, times, asked, state.arrived_at)
            except (BadImage, TooLarge, ImageUrlRefused, ImageUnreachable) as error:
                error.detail = f"{field}.{index}: {error.detail}"
                raise
            finally:
                state.times.stages.extend(times.stages)
            state.memory.take(len(answer.payload.body))  # until all are sent
            payloads.append(answer.payload)
        return payloads

    return await while_connected(request, answer_each())


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
