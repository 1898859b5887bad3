"""uvicorn's WebSocket connection, which is let go even if its peer takes nothing more."""

from __future__ import annotations

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol


class StreamTransport(WebSocketsSansIOProtocol):
    """Closing writes out what is left, which a peer that does not read prevents for ever."""

    async def run_asgi(self) -> None:
        try:
            await super().run_asgi()
        finally:
            # As long as uvicorn waits for the peer's part of the closing handshake, and a bit.
            self.loop.call_later(self.close_timeout + 1, self.transport.abort)
