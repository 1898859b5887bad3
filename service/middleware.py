"""Pure ASGI middleware: what every request gets, whatever its route.

Starlette's request-response middleware is not used: behind it a route never sees a disconnect.
"""

from __future__ import annotations

import asyncio
import logging
import re
import uuid
from collections.abc import Callable
from urllib.parse import quote

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import (
    Draining,
    InternalError,
    ServiceError,
    TooLarge,
    UploadTooSlow,
)
from service.memory_budget import MemoryBudget, MemoryShare
from service.metrics import Metrics
from service.request_record import UNMATCHED, RequestRecord, current_request_id
from service.settings import Settings
from service.stages import StageTimes

logger = logging.getLogger("segvlm.request")

_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")


class RequestObserver:
    """Gives each request and stream an id; counts, times and logs it once, whatever becomes of it.

    It is the outermost, so it also answers what nothing else caught. `scope["state"]` carries what
    the layers inside say of the request: `request_id`, `times`, `key`, its API key's name,
    `reason` if it was refused, and of a stream `frames`.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        problem: Callable[[Scope, ServiceError], Response],
        record: Callable[[RequestRecord], None],
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._problem = problem
        self._record = record

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        times = StageTimes()
        state = scope.setdefault("state", {})
        started = times.clock()
        state.update(request_id=request_id, times=times, arrived_at=started, reason=None, frames={})
        token = current_request_id.set(request_id)
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if not status and (answered := _status(message)):
                status = answered
                if message["type"] != "websocket.close":
                    message.setdefault("headers", [])
                    sent = MutableHeaders(scope=message)
                    sent["X-Request-Id"] = request_id
                    sent["X-Content-Type-Options"] = "nosniff"
            await send(message)

        if scope["type"] == "http":
            self._metrics.request_started()
        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            logger.exception("an unexpected fault")
            if status:
                raise  # the answer has begun; only closing the connection is left
            await self._problem(scope, InternalError())(scope, receive, send_with_id)
        except asyncio.CancelledError:
            if not status:  # cut off at the end of the shutdown
                status, state["reason"] = Draining.status, Draining.reason
            raise
        finally:
            self._ended(scope, status or InternalError.status, times)
            current_request_id.reset(token)

    def _ended(self, scope: Scope, status: int, times: StageTimes) -> None:
        state = scope["state"]
        record = RequestRecord(
            request_id=state["request_id"],
            method=scope.get("method", "GET"),  # a stream begins as one
            path=quote(scope["path"]),  # a line break in it would forge a line of the log
            route=getattr(scope.get("route"), "path", UNMATCHED),
            status=status,
            reason=state["reason"],
            traceparent=Headers(scope=scope).get("traceparent"),
            key=state.get("key"),
            started_at=state["arrived_at"],
            finished_at=times.clock(),
            stages=tuple(times.stages),
            frames=state["frames"],
        )
        if scope["type"] == "http":
            self._metrics.request_finished(record)
        else:
            self._metrics.stream_finished(record)
        self._record(record)


def _status(message: Message) -> int | None:
    """What a message says of the answer: its status, 101 when a stream is accepted."""
    match message["type"]:
        case "http.response.start" | "websocket.http.response.start":
            return int(message["status"])
        case "websocket.accept":
            return 101
        case "websocket.close":  # instead of accepting it, or the status is known already
            return 403
        case _:
            return None


class BodyLimit:
    """Bounds what is read: bytes of one body, bytes of all bodies in memory, seconds of an upload.

    Counts what arrives, so a missing or false Content-Length changes nothing. The errors are
    raised out of `receive`, inside the application, and take the way of every other error.
    `scope["state"]["memory"]` is the request's MemoryShare, for what else it makes.
    """

    def __init__(self, app: ASGIApp, settings: Settings, budget: MemoryBudget) -> None:
        self._app = app
        self._settings = settings
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        upload = _Upload(receive, Headers(scope=scope).get("content-length", ""), self._settings)
        memory = scope["state"]["memory"] = MemoryShare(self._budget)

        async def bounded_receive() -> Message:
            message = await upload.receive()
            memory.take(len(message.get("body", b"")))
            return message

        try:
            await self._app(scope, bounded_receive, send)
        finally:
            memory.release()


class _Upload:
    """One body on its way in."""

    def __init__(self, receive: Receive, declared: str, settings: Settings) -> None:
        self._receive = receive
        self._declared = int(declared[:18]) if declared.isascii() and declared.isdigit() else 0
        self._settings = settings
        self._arrived = 0
        self._complete = False
        self._deadline = asyncio.get_running_loop().time() + settings.upload_timeout

    async def receive(self) -> Message:
        if self._complete:  # now the only message to come is the disconnect, at any time
            return await self._receive()
        self._check(self._declared)
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise UploadTooSlow(self._settings.upload_timeout) from None
        if message["type"] == "http.request":
            self._arrived += len(message.get("body", b""))
            self._check(self._arrived)
            self._complete = not message.get("more_body", False)
        return message

    def _check(self, size: int) -> None:
        limit = self._settings.max_body_bytes
        if size > limit:
            raise TooLarge(
                f"the request's body is longer than {limit:,} bytes; send a smaller or more "
                "compressed image (SEGVLM_MAX_BODY_BYTES sets the limit)",
                limit,
            )
