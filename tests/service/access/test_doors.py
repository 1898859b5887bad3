"""A second port for operators: what is there, what is not, and how it opens and closes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse

from service.doors import OPERATORS, PROBES, AdminDoor
from service.server import Server
from service.settings import SettingsError, load_settings

PATIENCE = 60.0


@pytest.fixture
def free_port() -> int:
    """One that nobody has; 0 would mean that there is no second port."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@pytest.fixture
def two_doors(make_service: Callable[..., Any], keys: Any) -> tuple[Any, TestClient, TestClient]:
    """The service, a client of its first port without a key, one of the second, both in process."""
    service = make_service(admin_port=1, api_keys_file=keys.path)
    assert service.client
    return service, service.client, TestClient(AdminDoor(service.app))


@pytest.mark.parametrize("path", sorted(OPERATORS))
def test_what_is_for_operators_is_at_the_second_port_only(
    path: str, two_doors: Any, keys: Any
) -> None:
    _, public, admin = two_doors
    assert admin.get(path).status_code == 200  # without a key
    refused = public.get(path, headers={"X-API-Key": keys.key["anna"]})
    assert refused.status_code == 404
    assert refused.json()["reason"] == "not_found"


@pytest.mark.parametrize("path", sorted(PROBES))
def test_probes_are_at_both(path: str, two_doors: Any) -> None:
    _, public, admin = two_doors
    assert public.get(path).status_code == admin.get(path).status_code == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/segment"), ("GET", "/"), ("GET", "/v2"), ("GET", "/static/page.js"), ("GET", "/x")],
)
def test_the_second_port_is_no_way_around_the_keys(
    method: str, path: str, two_doors: Any, keys: Any
) -> None:
    _, _, admin = two_doors
    answer = admin.request(method, path, headers={"X-API-Key": keys.key["anna"]})
    assert answer.status_code == 404
    assert "error" in answer.json() if path == "/v2" else answer.json()["reason"] == "not_found"


def test_nor_for_streams(two_doors: Any) -> None:
    _, _, admin = two_doors
    with pytest.raises(WebSocketDenialResponse) as caught, admin.websocket_connect("/stream"):
        pass
    assert caught.value.status_code == 404


def test_each_request_to_either_is_counted_once(two_doors: Any) -> None:
    service, public, admin = two_doors
    received = service.metric("segvlm_received_total")
    scrapes = service.metric("segvlm_requests_total", route="/metrics", code="200")
    admin.get("/metrics")
    public.get("/metrics")
    assert service.metric("segvlm_requests_total", route="/metrics", code="200") == scrapes + 1
    assert service.metric("segvlm_requests_total", route="unmatched", code="404") == 1
    assert service.metric("segvlm_received_total") == received + 2


def test_without_a_second_port_all_is_at_the_first(service: Any) -> None:
    assert {service.client.get(path).status_code for path in OPERATORS} == {200}


def test_what_is_unknown_is_not_explained_by_what_is_elsewhere(two_doors: Any, keys: Any) -> None:
    _, public, _ = two_doors
    problem = public.get("/segment", headers={"X-API-Key": keys.key["anna"]}).json()
    assert problem["reason"] == "method_not_allowed"
    assert "see docs/api.md" in problem["detail"]


@dataclass
class Running:
    """A server in a thread; `stop` waits until it has ended."""

    server: Server
    thread: threading.Thread
    url: str
    admin: str

    def stop(self) -> bool:
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        return not self.thread.is_alive()


@pytest.fixture
def running(make_service: Callable[..., Any], free_port: int) -> Iterator[Running]:
    """The service on two real ports."""
    service = make_service(host="127.0.0.1", port=0, admin_port=free_port)
    server = Server(service.settings, service.engine)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        end = time.monotonic() + PATIENCE
        while not (len(getattr(server, "servers", ())) == 2 and service.engine.ready):
            assert time.monotonic() < end and thread.is_alive()
            time.sleep(0.005)
        host, port = server.servers[0].sockets[0].getsockname()
        yield Running(server, thread, f"http://{host}:{port}", f"http://127.0.0.1:{free_port}")
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


def test_both_ports_open_and_close_together(running: Running) -> None:
    admin = running.admin
    with httpx.Client(timeout=PATIENCE) as client:
        assert client.get(f"{running.url}/metrics").status_code == 404
        scrape = client.get(f"{admin}/metrics")
        assert b"segvlm_model_ready 1.0" in scrape.content
        assert {"date", "x-request-id", "x-content-type-options"} <= set(scrape.headers)
        assert client.post(f"{admin}/segment", content=b"x" * 100_000).status_code == 404
        upgrade = {
            "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        }  # fmt: skip
        assert client.get(f"{admin}/stream", headers=upgrade).status_code == 404
        assert running.stop()  # while a connection to each is open
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{admin}/healthz")


def start(port: int, **settings: str) -> subprocess.Popen[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SEGVLM_")}
    return subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--backend", "fake", "--port", "0"],
        env={**kept, "SEGVLM_HOST": "127.0.0.1", "SEGVLM_ADMIN_PORT": str(port), **settings},
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_process_says_where_its_documents_are_and_stops(free_port: int) -> None:
    process = start(free_port)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert f"API at http://localhost:{free_port}/docs" in line
        assert httpx.get(f"http://127.0.0.1:{free_port}/readyz").status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_port_that_is_taken_is_named(free_port: int) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", free_port))
        taken.listen()
        process = start(free_port)
        _, line = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert f"cannot listen on 127.0.0.1, port {free_port}" in line
    assert "SEGVLM_ADMIN_HOST and SEGVLM_ADMIN_PORT" in line


@pytest.mark.parametrize(
    ("port", "told"),
    [("8000", "must not be SEGVLM_PORT"), ("tcp://10.0.0.1:80", "enableServiceLinks: false")],
)
def test_ports_that_cannot_be_are_refused(port: str, told: str, monkeypatch: Any) -> None:
    monkeypatch.setenv("SEGVLM_ADMIN_PORT", port)
    with pytest.raises(SettingsError, match=told) as caught:
        load_settings(port=8000)
    assert "SEGVLM_ADMIN_PORT=" in str(caught.value)
