"""A server that does what a script says, for the client to call."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.waiting import PATIENCE

Step = Callable[["Handler"], None]


def answer(status: int, body: bytes = b"", **headers: str) -> Step:
    """A whole answer; `_` in a header's name stands for `-`."""

    def step(handler: Handler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return step


DOCUMENT = {
    "model": {"name": "m", "version": "1"},
    "image": {"width": 3, "height": 2},
    "results": [
        {
            "expression": "x",
            "truncated": False,
            "score": 0.5,
            "area": 0,
            "bbox": None,
            "mask": {"format": "rle", "size": [2, 3], "counts": "6"},
        }
    ],
    "timings": {"total": 1.0},
}
GOOD = answer(200, json.dumps(DOCUMENT).encode())


def reset_halfway(handler: Handler) -> None:
    """Promise a thousand bytes, send a few, and break the connection."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"model":')
    handler.wfile.flush()
    linger = struct.pack("ii", 1, 0)
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    handler.close_connection = True


def hang_up(handler: Handler) -> None:
    """Close without a word, as a server does whose idle time is over."""
    handler.close_connection = True


def silence(handler: Handler) -> None:
    """Never answer; returns when the client leaves or the test ends."""
    handler.script.silent += 1
    handler.connection.settimeout(0.02)
    while not handler.script.over.is_set():
        try:
            if not handler.connection.recv(1):
                handler.script.left += 1
                break
        except TimeoutError:
            continue
        except OSError:
            handler.script.left += 1
            break
    handler.close_connection = True


def trickle(handler: Handler) -> None:
    """A byte now and then: no single read ever waits long."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    try:
        while not handler.script.over.wait(0.01):
            handler.wfile.write(b" ")
            handler.wfile.flush()
    except OSError:
        handler.script.left += 1
    handler.close_connection = True


@dataclass
class Received:
    """One request as it came."""

    path: str
    headers: dict[str, str]
    body: bytes


@dataclass
class Script:
    """Steps to go through, one for each request; the last one holds on."""

    steps: list[Step]
    url: str = ""
    received: list[Received] = field(default_factory=list)
    silent: int = 0
    left: int = 0
    over: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, received: Received) -> Step:
        with self._lock:
            self.received.append(received)
            return self.steps.pop(0) if len(self.steps) > 1 else self.steps[0]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    script: Script

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.script.take(Received(self.path, headers, body))(self)

    def log_message(self, *arguments: object) -> None:
        pass


class QuietServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *arguments: object) -> None:
        """A broken connection is what the tests are about."""


@contextmanager
def playing(*steps: Step) -> Iterator[Script]:
    """A server on a port of its own that goes through the steps."""
    script = Script(list(steps))
    handler = type("ScriptHandler", (Handler,), {"script": script})
    server = QuietServer(("127.0.0.1", 0), handler)
    script.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield script
    finally:
        script.over.set()
        server.shutdown()
        server.server_close()
        thread.join(PATIENCE)
