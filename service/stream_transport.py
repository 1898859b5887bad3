"""uvicorn's WebSocket connection, with ways of closing that it lacks."""

from __future__ import annotations

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

_LAST_WORD = 1.0  # seconds in which a peer may still take it when the process stops


class StreamTransport(WebSocketsSansIOProtocol):
    """A client reads why it was closed although it still sends; one that reads nothing is let go.

    Both need what an ASGI application cannot reach. `close_timeout` is uvicorn's: seconds for the
    peer's part of the closing.
    """

    async def run_asgi(self) -> None:
        try:
            await super().run_asgi()
        finally:
            # Closing writes out what is left, which a peer that does not read prevents for ever.
            self.loop.call_later(self.close_timeout + 1, self.transport.abort)

    def shutdown(self) -> None:
        super().shutdown()
        self.loop.call_later(_LAST_WORD, self.transport.abort)

    def data_received(self, data: bytes) -> None:
        if self.conn.parser_exc is None:
            super().data_received(data)

    def handle_parser_exception(self) -> None:
        """After a message that is too large or makes no sense.

        uvicorn closes at once, and the system answers what the client still sends with a reset,
        which costs it the code. So the rest is read, and thrown away.
        """
        closed = self.conn.close_sent
        assert closed is not None
        self.queue.put_nowait(
            {"type": "websocket.disconnect", "code": closed.code, "reason": closed.reason}
        )
        self.transport.write(b"".join(self.conn.data_to_send()))
        if self.transport.can_write_eof():
            self.transport.write_eof()  # so the peer need not wait for us to read its closing
        self.close_sent = True
        self.stop_keepalive()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)
