"""Bodies that are too long, too many or too slow: nothing is read beyond the limits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx2 as httpx
import pytest

from tests.service.problem_checks import PATIENCE, check


@pytest.mark.parametrize("declared", [True, False], ids=["content-length", "chunked"])
def test_too_many_bytes(make_service: Callable[..., Any], declared: bool) -> None:
    service = make_service(max_body_bytes=10_000)
    content: Any = bytes(10_001) if declared else (bytes(1000) for _ in range(11))
    response = service.client.post(
        "/segment", content=content, headers={"Content-Type": "application/json"}
    )
    assert check(response, service, 413, "too_large")["limit"] == 10_000


def test_too_many_bytes_are_not_read_to_the_end(make_service: Callable[..., Any]) -> None:
    """An endless upload is answered after the first bytes beyond the limit."""
    service = make_service(max_body_bytes=10_000)

    async def scenario() -> tuple[httpx.Response, int]:
        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            while sent < 10_000_000:
                sent += 1000
                yield bytes(1000)

        async with asgi_client(service) as client:
            response = await client.post(
                "/segment", content=endless(), headers={"Content-Type": "application/json"}
            )
        return response, sent

    response, sent = asyncio.run(scenario())
    check(response, service, 413, "too_large")
    assert sent <= 12_000


def test_all_bodies_together_are_bounded(make_service: Callable[..., Any]) -> None:
    service = make_service(max_buffered_bytes=50_000)
    response = service.client.post("/segment", content=bytes(50_001))
    check(response, service, 503, "queue_full")
    assert response.headers["retry-after"] == "1"
    for _ in range(3):  # what was counted is given back, whatever became of the request
        assert service.client.post("/segment", content=bytes(40_000)).status_code == 415


def test_slow_upload_is_cut_off(make_service: Callable[..., Any]) -> None:
    service = make_service(upload_timeout=0.05)

    async def scenario() -> httpx.Response:
        async def stalled() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.sleep(PATIENCE)

        async with asgi_client(service) as client:
            return await client.post(
                "/segment", content=stalled(), headers={"Content-Type": "application/json"}
            )

    response = asyncio.run(scenario())
    problem = check(response, service, 408, "upload_timeout")
    assert response.headers["connection"] == "close"
    assert "SEGVLM_UPLOAD_TIMEOUT" in problem["detail"]


def asgi_client(service: Any) -> httpx.AsyncClient:
    """A client of the bare application: for what must not wait for a whole request first."""
    return httpx.AsyncClient(
        transport=StreamingTransport(service.app), base_url="http://test", timeout=PATIENCE
    )


class StreamingTransport(httpx.AsyncBaseTransport):
    """Feeds the request's body piece by piece, as a server does, and stops when it is answered."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        pieces = request.stream.__aiter__()  # type: ignore[union-attr]
        messages: list[Any] = []

        async def receive() -> dict[str, Any]:
            try:
                return {"type": "http.request", "body": await anext(pieces), "more_body": True}
            except StopAsyncIteration:
                return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            messages.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": request.method,
            "path": request.url.path,
            "raw_path": request.url.raw_path,
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "client": ("test", 1),
            "server": ("test", 80),
        }
        await self._app(scope, receive, send)
        start, *bodies = messages
        return httpx.Response(
            start["status"],
            headers=start["headers"],
            content=b"".join(message.get("body", b"") for message in bodies),
        )
