"""Real sockets on this machine: disconnects, slow and endless uploads, and a graceful stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest

from service.server import Server

pytestmark = pytest.mark.long(40)

PATIENCE = 60.0
BOUNDARY = "frontier"


def wait_until(condition: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited {PATIENCE:g} s for: {what}"
        time.sleep(0.005)


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


def in_thread(call: Callable[[], Any]) -> list[Any]:
    results: list[Any] = []
    threading.Thread(target=lambda: results.append(call()), daemon=True).start()
    return results


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


SERVE_SLOWLY = """
import sys, time
from pathlib import Path
from service import __main__ as command
from service import inference
from service.backends import fake

entered, gate = map(Path, sys.argv[1:3])
decode = fake.FakeBackend.decode
warm_up = inference.ModelDevice.warm_up

def decode_when_told(self, *features):
    entered.touch()
    while not gate.exists():
        time.sleep(0.01)
    return decode(self, *features)

def warm_up_at_full_speed(self):
    warm_up(self)
    fake.FakeBackend.decode = decode_when_told

inference.ModelDevice.warm_up = warm_up_at_full_speed
sys.exit(command.main(["serve", "--backend", "fake", "--host", "127.0.0.1", "--port", "0"]))
"""


LOAD_FOR_EVER = """
import sys, time
from service import __main__ as command

def load(settings):
    print("loading", flush=True)
    time.sleep(600)

command.load_engine = load
sys.exit(command.main(["serve", "--backend", "fake"]))
"""


def test_a_stop_is_heard_while_the_model_loads(repo_root: Path) -> None:
    """By a handler: process 1 of a container has no default that would end it."""
    process = subprocess.Popen(
        [sys.executable, "-c", LOAD_FOR_EVER], cwd=repo_root, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.terminate()
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_graceful_stop_answers_what_was_accepted(
    tmp_path: Path, repo_root: Path, small_photo: bytes, signal_number: int
) -> None:
    entered, gate = tmp_path / "entered", tmp_path / "gate"
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE_SLOWLY, str(entered), str(gate)],
        cwd=repo_root,
        env={**os.environ, "PYTHONPATH": str(repo_root), "SEGVLM_ACCESS_LOG": "false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "is ready on http://localhost:" in line
        assert "curl -F image=@photo.jpg" in line
        url = "http://127.0.0.1:" + line.split("http://localhost:")[1].split()[0]
        accepted = in_thread(
            lambda: httpx.post(
                f"{url}/segment",
                files={"image": small_photo},
                data={"expression": "x"},
                timeout=PATIENCE,
            )
        )
        wait_until(entered.exists, "the model to be busy")
        process.send_signal(signal_number)
        wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 503, "readiness to go")
        assert httpx.get(f"{url}/healthz").status_code == 200
        refused = httpx.post(
            f"{url}/segment", files={"image": small_photo}, data={"expression": "y"}
        )
        assert refused.status_code == 503
        assert refused.json()["reason"] == "draining"
        assert int(refused.headers["retry-after"]) >= 1
        assert not accepted
        gate.touch()
        output, errors = process.communicate(timeout=PATIENCE)
        wait_until(lambda: accepted, "the accepted request's answer")
        assert accepted[0].status_code == 200
        assert process.returncode == 0, errors
        assert "Traceback" not in errors
        assert output == ""
    finally:
        gate.touch()
        process.kill()
        process.wait()


SERVE_BADLY = """
import sys, threading, time
from service import __main__ as command
from service import batcher, inference
from service.backends import base, fake

admit, warm_up = batcher.Batcher.admit, inference.ModelDevice.warm_up
admitted = threading.Semaphore(0)

def admit_and_tell(self):
    slot = admit(self)
    admitted.release()
    return slot

def hang(self, *features):
    time.sleep(600)

def lose(self, *features):
    for _ in range(2):  # whoever comes later would find no process
        admitted.acquire(timeout=60)
    raise base.DeviceLost("uncorrectable memory error")

def warm_up_well(self):
    warm_up(self)
    fake.FakeBackend.decode = {"hang": hang, "lose": lose}[sys.argv[1]]

batcher.Batcher.admit = admit_and_tell
inference.ModelDevice.warm_up = warm_up_well
sys.exit(command.main(["serve", "--backend", "fake", "--host", "127.0.0.1", "--port", "0"]))
"""


@pytest.mark.parametrize(
    ("fault", "batch_timeout", "reason"),
    [("hang", "3", "a batch took more than 3 s"), ("lose", "90", "uncorrectable memory error")],
)
def test_process_of_a_broken_device_ends_with_a_failure_and_a_reason(
    repo_root: Path, small_photo: bytes, fault: str, batch_timeout: str, reason: str
) -> None:
    """Also when its thread never comes back: the supervisor gets a process to start anew."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE_BADLY, fault],
        cwd=repo_root,
        env={**os.environ, "PYTHONPATH": str(repo_root), "SEGVLM_BATCH_TIMEOUT": batch_timeout},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = "http://127.0.0.1:" + line.split("http://localhost:")[1].split()[0]
        answers = [
            in_thread(
                lambda word=word: httpx.post(
                    f"{url}/segment",
                    files={"image": small_photo},
                    data={"expression": word},
                    timeout=PATIENCE,
                )
            )
            for word in ("running", "in the same batch or queued")
        ]
        wait_until(lambda: all(answers), "everybody's answer")
        for (answer,) in answers:
            assert answer.status_code == 503
            assert answer.json()["reason"] == "engine_stopped"
            assert int(answer.headers["retry-after"]) >= 1
        assert process.wait(PATIENCE) == 1
        _, errors = process.communicate()
        kind = "DeviceLost: " if fault == "lose" else ""
        assert f"error: the model has stopped: {kind}{reason}" in errors
    finally:
        process.kill()
        process.wait()


def refused_address(repo_root: Path, host: str, port: int) -> str:
    """The last line that the service prints if it cannot listen there."""
    finished = subprocess.run(
        [sys.executable, "-m", "service", "serve", "--host", host, "--port", str(port)],
        env={**os.environ, "SEGVLM_BACKEND": "fake"},
        cwd=repo_root,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert finished.returncode == 2
    assert finished.stdout == ""
    (line,) = finished.stderr.splitlines()
    return line


def test_port_that_is_taken_is_a_clear_error(repo_root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = refused_address(repo_root, "127.0.0.1", port)
    assert line.startswith(f"error: cannot listen on 127.0.0.1, port {port}: ")
    assert "already in use" in line
    assert "SEGVLM_PORT" in line


def test_address_that_is_none_is_a_clear_error(repo_root: Path) -> None:
    line = refused_address(repo_root, "256.1.1.1", 0)
    assert line.startswith("error: cannot listen on 256.1.1.1, port 0: ")
    assert "SEGVLM_HOST" in line
