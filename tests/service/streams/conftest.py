"""A watched service behind a real server, and real streams to it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.server import Server
from tests.service.streams.stream_client import Stream
from tests.waiting import PATIENCE, wait_until


class Running:
    """A service on the watched fake backend behind uvicorn, in a thread."""

    def __init__(self, service: Any) -> None:
        self.service = service
        self.server = Server(service.settings, service.engine)
        self.streams = self.server.config.app.state.streams  # type: ignore[union-attr]
        self.opened: list[Stream] = []
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        wait_until(lambda: self.server.started, "the server to listen")
        service.wait_ready()
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"

    def stream(
        self, options: dict[str, Any] | None = None, path: str = "/stream", **configuration: Any
    ) -> Stream:
        self.opened.append(Stream(f"ws://{self.host}{path}", options or {}, **configuration))
        return self.opened[-1]

    def deaf_stream(self, **configuration: Any) -> Stream:
        """Of a client that takes no more of its answers than fits into small buffers."""
        narrow = socket.socket()
        narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        narrow.connect(("127.0.0.1", self.port))
        return self.stream({"sock": narrow, "max_queue": 1}, **configuration)

    def hold(self) -> None:
        """Let the model begin, but not end."""
        self.service.backend.gate.clear()

    def go_on(self) -> None:
        self.service.backend.gate.set()

    def frames(self) -> dict[str, float]:
        """What was counted of frames: received, answered, dropped, and failed for each reason."""
        metrics = self.service.engine.metrics
        counted = {
            name: self.service.metric(f"segvlm_frames_{name}_total")
            for name in ("received", "answered", "dropped")
        }
        for sample in next(iter(metrics.frames_failed.collect())).samples:
            if sample.value:
                counted[sample.labels["reason"]] = sample.value
        return {name: value for name, value in counted.items() if value}

    def wait_no_streams(self) -> None:
        wait_until(lambda: not self.streams.open, "all streams to end")

    def stop(self) -> None:
        self.go_on()
        for stream in self.opened:
            stream.close()
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        assert not self.streams.open
        assert not self.streams.buffered.held
        assert not self.service.engine.images


@pytest.fixture
def serve(make_service: Callable[..., Any]) -> Iterator[Callable[..., Running]]:
    """A factory of running services; keyword arguments are settings. All must end clean."""
    running: list[Running] = []

    def start(**options: Any) -> Running:
        service = make_service(**{"host": "127.0.0.1", "port": 0, "access_log": False, **options})
        running.append(Running(service))
        return running[-1]

    yield start
    for one in running:
        one.stop()
