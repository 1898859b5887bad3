"""deploy/nginx/segvlm.conf in a real nginx, before real services: no request is lost.

Only addresses and ports are changed. The replicas have addresses of their own on the loopback
network, and a small name server tells them as Docker's does.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from service.errors import PROBLEM_MEDIA_TYPE, TooLarge
from service.settings import load_settings
from tests.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.long(38)

ROOT = Path(__file__).resolve().parents[2]
CONFIG = ROOT / "deploy" / "nginx" / "segvlm.conf"
LOOPBACK = "127.0.0.1"


def photo() -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (96, 64), "red").save(buffer, "JPEG")
    return buffer.getvalue()


FORM: dict[str, Any] = {"files": {"image": photo()}, "data": {"expression": "the dog"}}


def free_port() -> int:
    """On every address of the loopback network."""
    with socket.create_server(("", 0)) as free:
        return int(free.getsockname()[1])


# -- by its text ------------------------------------------------------------------------------


def directive(name: str) -> str:
    """Its value, where it stands once."""
    (value,) = re.findall(rf"^\s*{name} ([^;{{]+);", CONFIG.read_text(encoding="utf-8"), re.M)
    return str(value)


def test_limits_fit_the_services() -> None:
    settings = load_settings()
    body = int(directive("client_max_body_size").removesuffix("m")) * 2**20
    assert body == settings.max_body_bytes
    assert int(directive("proxy_read_timeout").removesuffix("s")) > settings.timeout


# -- who answers ------------------------------------------------------------------------------


class Names:
    """A name server that knows one name, `segvlm`, and the addresses that stand behind it now."""

    def __init__(self) -> None:
        self.addresses: list[str] = []
        self.told: Counter[str] = Counter()
        """How often an answer had which address in it."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind((LOOPBACK, 0))
        self.port: int = self._socket.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            query, caller = self._socket.recvfrom(512)
            name, *_ = query[12:].partition(b"\0")
            assert name == b"\x06segvlm"
            question = query[12 : 12 + len(name) + 5]
            known = list(self.addresses)
            head = query[:2] + struct.pack("!HHHHH", 0x8180, 1, len(known), 0, 0)
            answers = b"".join(
                b"\xc0\x0c" + struct.pack("!HHIH", 1, 1, 600, 4) + socket.inet_aton(address)
                for address in known
            )
            self._socket.sendto(head + question + answers, caller)
            self.told.update(known)


@dataclass
class Replica:
    process: subprocess.Popen[str]
    address: str
    port: int

    def answered(self) -> float:
        """How many requests for a mask it has answered with one."""
        text = httpx.get(f"http://{self.address}:{self.port}/metrics").text
        found = re.search(r'^segvlm_requests_total\{code="200",route="/segment"} (\S+)', text, re.M)
        return float(found[1]) if found else 0.0


@contextmanager
def replica(address: str, port: int, **settings: str) -> Iterator[Replica]:
    command = [sys.executable, "-m", "service", "serve", "--backend", "fake"]
    environment = {f"SEGVLM_{name.upper()}": value for name, value in settings.items()}
    process = subprocess.Popen(
        [*command, "--host", address, "--port", str(port)],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "SEGVLM_ACCESS_LOG": "false", **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert " is ready on " in process.stdout.readline(), "the service did not start"
        yield Replica(process, address, port)
    finally:
        process.kill()
        process.wait()


@contextmanager
def balancer(directory: Path, names: Names, port: int) -> Iterator[str]:
    """nginx by our configuration before the replicas on this port; its address."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is missing; Debian's package nginx-light has it")
    listening = free_port()
    text = CONFIG.read_text(encoding="utf-8")
    for ours, here in (
        ("/tmp/", f"{directory}/"),
        ("resolver 127.0.0.11 ", f"resolver {LOOPBACK}:{names.port} "),
        ("segvlm:8000;", f"segvlm:{port};"),
        ("listen 8080;", f"listen {LOOPBACK}:{listening};"),
    ):
        assert ours in text
        text = text.replace(ours, here)
    config = directory / "nginx.conf"
    config.write_text(text, encoding="utf-8")
    # As root, nginx would give its work to a user who may not write here.
    options = "daemon off;" + (" user root;" if os.geteuid() == 0 else "")
    command = ["nginx", "-p", str(directory), "-c", str(config), "-e", "stderr", "-g", options]
    process = subprocess.Popen(command)
    try:
        url = f"http://{LOOPBACK}:{listening}"
        wait_until(lambda: answers(url), "nginx to listen")
        yield url
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(PATIENCE)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz").status_code == 200
    except httpx.TransportError:
        return False


@dataclass
class Stack:
    """Replicas, their names, and nginx before them."""

    replicas: list[Replica]
    names: Names
    url: str


@contextmanager
def stack(directory: Path, number: int, **settings: str) -> Iterator[Stack]:
    names, port = Names(), free_port()
    with ExitStack() as opened:
        replicas = [
            opened.enter_context(replica(f"127.0.0.{place}", port, **settings))
            for place in range(2, 2 + number)
        ]
        names.addresses = [each.address for each in replicas]
        yield Stack(replicas, names, opened.enter_context(balancer(directory, names, port)))


# -- who asks ---------------------------------------------------------------------------------


@dataclass
class Load:
    """Callers that ask one after another until told to stop, and never try again."""

    url: str
    outcomes: Counter[str] = field(default_factory=Counter)
    _stop: threading.Event = field(default_factory=threading.Event)

    def _ask(self) -> None:
        with httpx.Client(timeout=PATIENCE) as client:
            while not self._stop.is_set():
                try:
                    outcome = str(client.post(f"{self.url}/segment", **FORM).status_code)
                except httpx.TransportError as error:
                    outcome = repr(error)
                self.outcomes[outcome] += 1

    @contextmanager
    def of(self, callers: int) -> Iterator[None]:
        threads = [threading.Thread(target=self._ask) for _ in range(callers)]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stop.set()
            for thread in threads:
                thread.join(PATIENCE)

    def more(self, number: int) -> None:
        """Wait for as many further answers."""
        aim = self.outcomes.total() + number
        wait_until(lambda: self.outcomes.total() >= aim, f"{number} further answers")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_requests_spread_and_none_is_lost(how: signal.Signals, tmp_path: Path) -> None:
    with stack(tmp_path, 2) as running:
        load = Load(running.url)
        first, second = running.replicas
        with load.of(callers=8):
            load.more(300)
            shares = [first.answered(), second.answered()]
            first.process.send_signal(how)
            status = first.process.wait(PATIENCE)
            load.more(300)
        assert min(shares) > 0.25 * sum(shares)
        assert status == (0 if how == signal.SIGTERM else -how)
        assert set(load.outcomes) == {"200"}


def test_replicas_come_and_go_without_nginx_being_told(tmp_path: Path) -> None:
    """Two of four stop at once, as when new ones have replaced them."""
    with stack(tmp_path, 4) as running:
        *old, third, fourth = running.replicas
        running.names.addresses = [each.address for each in old]
        load = Load(running.url)
        with load.of(callers=8):
            load.more(100)
            running.names.addresses = [each.address for each in running.replicas]
            # Each of nginx's processes keeps what it was told for a second, and asks again.
            wait_until(lambda: running.names.told[fourth.address] >= 4, "nginx to learn of them")
            assert third.answered() and fourth.answered()
            for each in old:
                each.process.send_signal(signal.SIGTERM)
            for each in old:
                assert each.process.wait(PATIENCE) == 0
            load.more(100)
            running.names.addresses = [third.address, fourth.address]
            load.more(100)
        assert set(load.outcomes) == {"200"}


def test_when_all_refuse_the_caller_is_told_when_to_come_back(tmp_path: Path) -> None:
    """Their own 503, not a 502 of nginx."""
    with stack(tmp_path, 2, drain_seconds="30") as running:
        for each in running.replicas:
            each.process.send_signal(signal.SIGTERM)
        ready = f"{running.url}/readyz"
        wait_until(lambda: httpx.get(ready).status_code == 503, "both to drain")
        for _ in range(5):
            answer = httpx.post(f"{running.url}/segment", **FORM)
            assert answer.status_code == 503
            assert answer.json()["reason"] == "draining"
            assert int(answer.headers["Retry-After"]) >= 1


def test_bodies_and_paths(tmp_path: Path) -> None:
    with stack(tmp_path, 1) as running:
        url, largest = running.url, load_settings().max_body_bytes

        def post(size: int) -> httpx.Response:
            form = {**FORM, "files": {"image": bytes(size)}}
            return httpx.post(f"{url}/segment", **form, timeout=PATIENCE)

        assert post(largest - 1000).json()["reason"] == "bad_image"
        refused, own = post(largest + 1), TooLarge("", 0)
        assert refused.status_code == own.status
        assert refused.headers["Content-Type"] == PROBLEM_MEDIA_TYPE
        problem = own.problem(refused.json()["request_id"])
        assert {**problem, "detail": None} == {**refused.json(), "detail": None, "limit": 0}
        assert httpx.get(f"{url}/metrics").status_code == 404
        assert httpx.get(f"{url}/docs").status_code == 200
        asked = httpx.post(f"{url}/segment?format=none", **FORM)
        assert asked.json()["results"][0]["mask"] is None


def test_streams_pass_through(tmp_path: Path) -> None:
    """From a page of nginx's address, too; at a stop the service's own code comes through."""
    with stack(tmp_path, 1) as running:
        address = running.url.replace("http://", "ws://")
        with connect(f"{address}/stream", origin=running.url, compression=None) as stream:
            stream.send('{"expressions": ["the dog"]}')
            assert json.loads(stream.recv(PATIENCE))["type"] == "ready"
            stream.send(photo())
            assert json.loads(stream.recv(PATIENCE))["frame"] == 0
            running.replicas[0].process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as closed:
                stream.recv(PATIENCE)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
