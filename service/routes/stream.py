"""`/stream`: a WebSocket; expressions once, then a frame in each message and its masks back."""

from __future__ import annotations

from fastapi import APIRouter, Response, WebSocket

from service.errors import UpgradeRequired
from service.openapi import stream_responses
from service.stream_handshake import serve_stream

router = APIRouter()


@router.websocket("/stream")
async def stream(websocket: WebSocket) -> None:
    """See docs/api.md."""
    await serve_stream(websocket)


@router.get(
    "/stream",
    summary="A stream is a WebSocket",
    status_code=UpgradeRequired.status,
    response_class=Response,
    responses=stream_responses(),
)
async def say_how_to_stream() -> None:
    """Its messages are described in docs/api.md; a plain request is only told to upgrade."""
    raise UpgradeRequired()
