"""A stream to a running service, through a real WebSocket client, as a test talks to it."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.waiting import PATIENCE


class Stream:
    """Configured with the keyword arguments, unless there are none."""

    def __init__(self, address: str, options: dict[str, Any], **configuration: Any) -> None:
        usual = {"ping_interval": None, "compression": None, "max_size": None, "close_timeout": 1}
        options = {**usual, **options}
        self._stack = ExitStack()
        opening = connect(address, open_timeout=PATIENCE, **options)
        self.socket: ClientConnection = self._stack.enter_context(opening)
        if configuration:
            assert self.configure(**configuration)["type"] == "ready"

    def configure(self, **configuration: Any) -> dict[str, Any]:
        self.socket.send(json.dumps(configuration))
        return self.receive()

    def send(self, *images: bytes) -> None:
        for image in images:
            self.socket.send(image)

    def receive(self) -> dict[str, Any]:
        message = self.socket.recv(timeout=PATIENCE)
        assert isinstance(message, str)
        return dict(json.loads(message))

    def ask(self, image: bytes) -> dict[str, Any]:
        self.send(image)
        return self.receive()

    def close(self) -> None:
        self._stack.close()

    def closing(self) -> tuple[int, str]:
        """The code and reason with which the server closes, after whatever it sends before."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                self.socket.recv(timeout=PATIENCE)
            except ConnectionClosed as closed:
                return (closed.rcvd.code, closed.rcvd.reason) if closed.rcvd else (1006, "")
        raise AssertionError("the stream was not closed")
