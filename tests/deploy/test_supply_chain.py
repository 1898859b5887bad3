"""`make sbom` lists what is installed, `make audit` tells a finding from a lack of data."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("make") is None, reason="install make"),
]

VULNERABLE = "pillow"


def make(repo_root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--silent", *arguments],
        cwd=repo_root,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def pins(repo_root: Path) -> dict[str, str]:
    """Version by normalised name, of everything that constraints.txt names."""
    text = (repo_root / "constraints.txt").read_text(encoding="utf-8")
    found = re.findall(r"^([\w.-]+)==(\S+)$", text, re.MULTILINE)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}


def test_sbom_lists_the_pinned_service_without_torch(repo_root: Path) -> None:
    finished = make(repo_root, "sbom")
    assert finished.returncode == 0, finished.stderr
    listed = repo_root / finished.stdout.splitlines()[-1]
    document = json.loads(listed.read_text(encoding="utf-8"))
    assert document["bomFormat"] == "CycloneDX"
    assert document["metadata"]["component"]["name"] == "segvlm"
    versions = {
        re.sub(r"[-_.]+", "-", each["name"]).lower(): each["version"]
        for each in document["components"]
    }
    assert {"fastapi", "onnxruntime", "pillow", "uvicorn"} <= set(versions)
    assert not {"torch", "pip", "pytest"} & set(versions)
    pinned = pins(repo_root)
    assert {name: pinned.get(name) for name in versions} == versions
    assert str(repo_root) not in listed.read_text(encoding="utf-8")


@pytest.fixture
def advisories() -> Iterator[tuple[str, dict[str, Any]]]:
    """A database like OSV's on this machine: its address, and the answer for each package."""
    answers: dict[str, Any] = {}

    class Database(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            name = json.loads(self.rfile.read(length))["package"]["name"]
            answer = json.dumps(answers.get(name.lower(), {})).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Database)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"-s osv --osv-url http://127.0.0.1:{server.server_port}/v1/query", answers
    server.shutdown()
    thread.join()
    server.server_close()


def test_audit_without_findings(repo_root: Path, advisories: tuple[str, dict[str, Any]]) -> None:
    finished = make(repo_root, "audit", f"AUDIT_ARGS={advisories[0]}")
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert finished.stdout.startswith("No known vulnerability")


def test_audit_shows_what_is_vulnerable(
    repo_root: Path, advisories: tuple[str, dict[str, Any]]
) -> None:
    version = pins(repo_root)[VULNERABLE]
    advisories[1][VULNERABLE] = {
        "vulns": [
            {
                "id": "TEST-1",
                "summary": "made up",
                "published": "2026-01-01T00:00:00Z",
                "affected": [
                    {
                        "package": {"name": VULNERABLE, "ecosystem": "PyPI"},
                        "versions": [version],
                        "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}]}],
                    }
                ],
            }
        ]
    }
    finished = make(repo_root, "audit", f"AUDIT_ARGS={advisories[0]}")
    assert finished.returncode != 0
    assert re.search(rf"^{VULNERABLE} +{re.escape(version)} +TEST-1", finished.stdout, re.MULTILINE)


def test_audit_without_data_says_that_nothing_was_checked(repo_root: Path) -> None:
    nobody = "-s osv --timeout 5 --osv-url http://127.0.0.1:9/v1/query"
    finished = make(repo_root, "audit", f"AUDIT_ARGS={nobody}")
    assert finished.returncode != 0
    (line,) = finished.stdout.splitlines()
    assert line.startswith("Nothing was checked, the data cannot be read: ")
    assert "Connection refused" in line
