"""Who may open a stream, and how somebody who may not is told."""

from __future__ import annotations

from contextlib import suppress

from starlette.websockets import WebSocket, WebSocketDisconnect

from service.engine import Engine
from service.errors import Draining, EngineStopped, ForeignOrigin, StreamsFull
from service.origins import origin_allowed
from service.stream_protocol import SUBPROTOCOL, error_message
from service.stream_session import StreamSession
from service.streams import Streams


async def serve_stream(socket: WebSocket) -> None:
    """Accept and serve. Raises ForeignOrigin, Draining or EngineStopped instead of accepting."""
    state = socket.app.state
    engine: Engine = state.engine
    streams: Streams = state.streams
    _authorize(socket)
    if engine.draining:
        raise Draining()
    if not engine.alive:
        raise EngineStopped()
    await socket.accept(SUBPROTOCOL if SUBPROTOCOL in socket.scope["subprotocols"] else None)
    try:
        with streams.place():
            await StreamSession(socket, engine, state.pipeline, state.settings, streams).run()
    except StreamsFull as error:
        # Told after accepting: a page's script never sees the answer to a refused handshake.
        socket.state.reason = error.reason
        with suppress(WebSocketDisconnect):
            await socket.send_text(error_message(None, error, socket.state.request_id))
            await socket.close(1008, error.title)


def _authorize(socket: WebSocket) -> None:
    """Raise ForeignOrigin for a page of another site. Keys are checked before, by middleware."""
    headers = socket.headers
    allowed = socket.app.state.settings.cors_origins.split(",")
    if not origin_allowed(headers.get("origin"), headers.get("host", ""), allowed):
        raise ForeignOrigin(
            f"a page from {headers['origin']} may not open a stream at {headers.get('host')}; "
            "open it from a page of this host, let a proxy in front pass the header Host on, or "
            "have the operator name the page in SEGVLM_CORS_ORIGINS"
        )
