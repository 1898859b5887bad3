"""`schemathesis` finds nothing: the service takes and answers what its OpenAPI document says.

It draws requests, valid and invalid, for every operation of the document and holds the answers to
it: no 500, only statuses, types, bodies and headers that are described, invalid requests refused,
valid ones answered, other methods a 405. `schemathesis.toml` has the exceptions and their reasons.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI

from service.api_keys import make_key
from service.openapi import describe_api

HERE = Path(__file__).parent
EVENTS = "/label-studio/webhook"
PATIENCE = 240.0  # seconds; a run takes a tenth of it


def run_schemathesis(url: str, *options: str) -> str:
    """Its report. It reads schemathesis.toml of the directory that it runs in."""
    command = [
        *(str(Path(sys.executable).with_name("schemathesis")), "run", f"{url}/openapi.json"),
        *("--no-color", *options),
    ]
    with tempfile.TemporaryDirectory() as storage:
        done = subprocess.run(
            command,
            cwd=HERE,
            env={**os.environ, "HYPOTHESIS_STORAGE_DIRECTORY": storage},
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}\nagain: {' '.join(command)}"
    return done.stdout


def operations(service: Any) -> int:
    return sum(len(item) for item in service.app.openapi()["paths"].values())


@pytest.fixture
def key_file(tmp_path: Path) -> tuple[Path, str]:
    """A file that lets one key in, and that key."""
    key, line = make_key("schemathesis")
    path = tmp_path / "keys"
    path.write_text(f"{line}\n", encoding="utf-8")
    return path, key


def test_everything_is_as_described(make_live_service: Callable[..., Any]) -> None:
    live = make_live_service(access_log=False)
    report = run_schemathesis(live.url)
    assert f"Tested: {operations(live.service)}\n" in report
    generated = re.search(r"(\d+) generated", report)
    assert generated and int(generated[1]) > 20 * operations(live.service)


def test_keys_are_as_described(
    make_live_service: Callable[..., Any], key_file: tuple[Path, str]
) -> None:
    """Every operation that wants a key in the document is refused without one."""
    path, key = key_file
    live = make_live_service(access_log=False, api_keys_file=path)
    header = f"Authorization: Bearer {key}"
    report = run_schemathesis(
        live.url, "--header", header, "--phases", "fuzzing", "--max-examples", "3"
    )
    assert f"Tested: {operations(live.service)}\n" in report


def test_a_false_document_is_noticed(
    make_live_service: Callable[..., Any],
    key_file: tuple[Path, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A status that is not described, and a lock that is not there."""

    def describe_falsely(app: FastAPI) -> dict[str, Any]:
        paths = describe_api(app)["paths"]
        paths[EVENTS]["post"]["responses"].pop("422", None)
        paths["/healthz"]["get"]["security"] = [{"bearer": []}]
        return describe_api(app)

    path, key = key_file
    monkeypatch.setattr("service.app.describe_api", describe_falsely)
    live = make_live_service(access_log=False, api_keys_file=path)
    chosen = ("--include-path", EVENTS, "--include-path", "/healthz")
    with pytest.raises(AssertionError) as caught:
        run_schemathesis(live.url, "--header", f"Authorization: Bearer {key}", *chosen)
    assert "ST103 Undocumented status code: 1" in str(caught.value)
    assert "ST401 API accepts requests without authentication: 1" in str(caught.value)
