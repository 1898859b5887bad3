"""`/stream`: a WebSocket; expressions once, then a frame in each message and its masks back."""

from __future__ import annotations

from fastapi import APIRouter, WebSocket

from service.stream_handshake import serve_stream

router = APIRouter()


@router.websocket("/stream")
async def stream(websocket: WebSocket) -> None:
    """See docs/api.md."""
    await serve_stream(websocket)
