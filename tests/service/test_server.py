"""Real sockets on this machine: disconnects, slow and endless uploads, and a graceful stop."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2 as httpx
import pytest

from service.server import Server
from tests.service.conftest import in_thread
from tests.waiting import wait_until

pytestmark = pytest.mark.long(40)

PATIENCE = 60.0
BOUNDARY = "frontier"


def form(image: bytes, expression: str) -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Disposition: form-data; name="
    return b"".join(
        (
            f'{head}"image"; filename="a.png"\r\n\r\n'.encode(),
            image,
            f'\r\n{head}"expression"\r\n\r\n{expression}\r\n--{BOUNDARY}--\r\n'.encode(),
        )
    )


def request(body: bytes, length: int | None = None) -> bytes:
    head = (
        "POST /segment HTTP/1.1\r\nHost: test\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
        f"Content-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    return head.encode() + body


class Running:
    """A watched service behind uvicorn, in a thread, on a port of its own."""

    def __init__(self, service: Any) -> None:
        self.service = service
        self.server = Server(service.settings, service.engine)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        wait_until(lambda: self.server.started, "the server to listen")
        service.wait_ready()
        self.port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def post(self, image: bytes, expression: str) -> httpx.Response:
        return httpx.post(
            f"{self.url}/segment",
            files={"image": image},
            data={"expression": expression},
            timeout=PATIENCE,
        )

    def stop(self) -> None:
        self.service.backend.gate.set()
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


@pytest.fixture
def serve(make_service: Callable[..., Any]) -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def start(**options: Any) -> Running:
        service = make_service(host="127.0.0.1", port=0, access_log=False, **options)
        running.append(Running(service))
        return running[-1]

    yield start
    for one in running:
        one.stop()


def test_client_that_left_while_queued_is_never_executed(
    serve: Callable[..., Running], small_photo: bytes
) -> None:
    running = serve()
    service = running.service
    service.backend.gate.clear()
    first = in_thread(lambda: running.post(small_photo, "the first"))
    assert service.backend.entered.wait(PATIENCE)
    with running.connect() as leaver:
        leaver.sendall(request(form(small_photo, "never run")))
        wait_until(lambda: service.metric("segvlm_queue_depth") == 1, "the second to queue")
    wait_until(lambda: service.metric("segvlm_queue_depth") == 0, "the disconnect to be seen")
    service.backend.gate.set()
    wait_until(lambda: first, "the first answer")
    assert first[0].status_code == 200
    assert running.post(small_photo, "the last").status_code == 200
    assert service.backend.batches == [1, 1]
    assert service.backend.texts_encoded == 2
    assert service.metric("segvlm_rejected_total", reason="disconnected") == 1
    assert service.metric("segvlm_requests_total", route="/segment", code="499") == 1
    assert service.engine.images == 0


def test_client_that_leaves_in_the_middle_of_its_upload(
    serve: Callable[..., Running], small_photo: bytes
) -> None:
    running = serve()
    with running.connect() as leaver:
        leaver.sendall(request(b"--frontier", length=1000))
        wait_until(lambda: running.service.metric("segvlm_inflight_requests") == 1, "the upload")
    wait_until(lambda: running.service.metric("segvlm_inflight_requests") == 0, "its end")
    assert running.service.metric("segvlm_rejected_total", reason="disconnected") == 1
    assert running.post(small_photo, "x").status_code == 200


def test_slow_upload_gets_a_408_and_loses_its_connection(serve: Callable[..., Running]) -> None:
    running = serve(upload_timeout=0.2)
    with running.connect() as slow:
        slow.sendall(request(b"--frontier", length=1000))
        answer = b""
        while piece := slow.recv(65536):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.split(b"\r\n\r\n", 1)[1])["reason"] == "upload_timeout"


def test_large_upload_is_answered_although_its_client_sends_on(
    serve: Callable[..., Running],
) -> None:
    """The client gets to read the 413: its connection is not reset under its writes."""
    running = serve(max_body_bytes=100_000)
    response = httpx.post(
        f"{running.url}/segment",
        content=bytes(5_000_000),
        headers={"Content-Type": "application/json"},
        timeout=PATIENCE,
    )
    assert response.status_code == 413
    assert response.json()["limit"] == 100_000


def test_death_of_the_worker_ends_the_process_with_a_failure(
    serve: Callable[..., Running], small_photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = serve()

    def die(*arguments: object) -> None:
        raise SystemExit("the driver is gone")

    monkeypatch.setattr(running.service.backend, "decode", die)
    assert running.post(small_photo, "x").status_code == 503
    running.thread.join(PATIENCE)
    assert not running.thread.is_alive()
    assert running.server.exit_code == 1


def test_listener_stays_open_while_balancers_notice(serve: Callable[..., Running]) -> None:
    running = serve(drain_seconds=0.5)
    told = time.monotonic()
    running.server.handle_exit(signal.SIGTERM, None)
    wait_until(lambda: httpx.get(f"{running.url}/readyz").status_code == 503, "readiness to go")
    running.thread.join(PATIENCE)
    assert not running.thread.is_alive()
    assert time.monotonic() - told >= 0.5
    assert running.server.exit_code == 0


def test_second_signal_does_not_wait_for_what_runs(
    serve: Callable[..., Running], small_photo: bytes
) -> None:
    running = serve(shutdown_timeout=PATIENCE)
    running.service.backend.gate.clear()
    in_thread(lambda: running.post(small_photo, "never answered"))
    assert running.service.backend.entered.wait(PATIENCE)
    running.server.handle_exit(signal.SIGTERM, None)
    wait_until(lambda: running.service.engine.draining, "the first signal to be seen")
    assert running.thread.is_alive()
    running.server.handle_exit(signal.SIGTERM, None)
    running.thread.join(PATIENCE / 2)
    assert not running.thread.is_alive()
