"""The service as a process: signals while it loads and works, a broken device, no address."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.service.conftest import in_thread
from tests.waiting import PATIENCE, wait_until

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
