"""Requests from text, through the whole application on the fake model, in this thread's loop."""

from __future__ import annotations

import asyncio
import json
import re
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qsl, unquote

from service.app import create_app
from service.backends.base import LoadOptions
from service.backends.fake import load_fake
from service.engine import Engine
from service.metrics import Metrics
from service.settings import Settings
from tests.fuzz.bounds import LONGEST, Finding

_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_LINE = re.compile(rb"([A-Z]{1,16}) (/[\x21-\x7e]*)")
_NO_VALUE = re.compile(rb"[\0\r\n]")


@dataclass(frozen=True)
class Message:
    """A request that an HTTP server would hand on: what it would refuse itself is left out."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> list[tuple[str, str]]:
        return parse_qsl(self.target.partition("?")[2], keep_blank_values=True)

    def header(self, name: str) -> str:
        """The first of that name, "" without one."""
        found = (value for key, value in self.headers if key == name.encode())
        return next(found, b"").decode("latin-1")


def split_message(data: bytes) -> Message:
    """A line, headers, an empty line, a body; without a true line it is `POST /segment`."""
    head, _, body = data.partition(b"\n\n")
    line, *rest = head.split(b"\n")
    found = _LINE.fullmatch(line)
    method, target = (found[1], found[2]) if found else (b"POST", b"/segment")
    headers = []
    for each in rest:
        name, _, value = each.partition(b":")
        if _NAME.fullmatch(name) and not _NO_VALUE.search(value):
            headers.append((name.lower(), value.strip(b" \t")))
    return Message(method.decode(), target.decode(), headers, body)


class Requests:
    """A running service; called with a message it sends it and judges the answer."""

    def __init__(self, settings: Settings) -> None:
        model = load_fake(32, 17, LoadOptions(max_batch_size=8))
        self._engine = Engine(model, settings, Metrics())
        self._app = create_app(settings, self._engine)
        self._runner = asyncio.Runner()

    def __enter__(self) -> Self:
        self._engine.start()
        end = time.monotonic() + LONGEST
        while not self._engine.ready:
            assert time.monotonic() < end, "the service did not get ready"
            time.sleep(0.01)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._runner.close()
        self._engine.stop(LONGEST)
        self._app.state.pipeline.close()

    def __call__(self, data: bytes) -> bool:
        """Whether it was answered without an error. Raises Finding."""
        message = split_message(data)
        started, body = self._runner.run(asyncio.wait_for(self._send(message), LONGEST))
        status, headers = started["status"], dict(started["headers"])
        if not 200 <= status < 499:
            raise Finding(f"status {status}: {body[:500]!r}")
        if headers.get(b"content-type", b"").endswith(b"json"):
            json.loads(body)
        if self._engine.images:
            raise Finding(f"{self._engine.images} images still count after the answer")
        return status < 400

    async def _send(self, message: Message) -> tuple[Any, bytes]:
        unsent, sent = [message.body], []

        async def receive() -> dict[str, Any]:
            if unsent:
                return {"type": "http.request", "body": unsent.pop(), "more_body": False}
            await asyncio.Event().wait()  # the client stays until it is answered
            raise AssertionError

        async def send(event: Any) -> None:
            sent.append(event)

        path, _, query = message.target.partition("?")
        scope = {
            **{"type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1"},
            **{"method": message.method, "path": unquote(path), "raw_path": path.encode()},
            **{"query_string": query.encode(), "root_path": "", "scheme": "http"},
            **{"headers": message.headers, "client": ("fuzz", 1), "server": ("fuzz", 80)},
        }
        await self._app(scope, receive, send)
        started = [event for event in sent if event["type"] == "http.response.start"]
        if len(started) != 1 or sent[-1].get("more_body", False):
            raise Finding(f"{len(started)} answers to one request")
        return started[0], b"".join(event.get("body", b"") for event in sent)
