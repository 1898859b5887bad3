"""Where Ray's proxy differs from an HTTP server in the same process, put right for the service."""

from __future__ import annotations

import asyncio

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send


class BehindProxy:
    """Pure ASGI middleware, the outermost.

    A client that leaves: Ray cancels the request, which the service would count as cut off by its
    own stop. Here it becomes the `http.disconnect` that a server sends.
    The X-Request-Id of the answer: Ray's proxy adds it, and one is enough. The id is the same; the
    proxy hands on the client's, or its own.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        left = asyncio.Event()
        serving = asyncio.ensure_future(
            self._app(scope, _until(left, receive), _without_request_id(send))
        )
        try:
            await asyncio.shield(serving)
        except asyncio.CancelledError:
            left.set()
            await serving
            raise


def _until(left: asyncio.Event, receive: Receive) -> Receive:
    """`receive` as long as the client is there; Ray may also cancel it before the request."""

    async def receive_until() -> Message:
        message = asyncio.ensure_future(receive())
        leaving = asyncio.ensure_future(left.wait())
        try:
            await asyncio.wait((message, leaving), return_when=asyncio.FIRST_COMPLETED)
            if not message.done() or message.cancelled() or message.exception() is not None:
                return {"type": "http.disconnect"}
            return message.result()
        finally:
            message.cancel()
            leaving.cancel()

    return receive_until


def _without_request_id(send: Send) -> Send:
    async def send_without(message: Message) -> None:
        if message["type"] == "http.response.start":
            del MutableHeaders(scope=message)["X-Request-Id"]
        await send(message)

    return send_without
