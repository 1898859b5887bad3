"""The program in docs/api.md does what it is there for."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def test_example_runs(
    serve: Callable[..., Any],
    small_photo: bytes,
    repo_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    api = (repo_root / "docs" / "api.md").read_text(encoding="utf-8")
    below = api.split("## `/stream`\n", 1)[1].split("\n## ", 1)[0]
    (program,) = re.findall(r"^```python\n(.*?)^```", below, re.MULTILINE | re.DOTALL)
    assert program.count("localhost:8000") == 1
    (tmp_path / "frames").mkdir()
    for number, image in enumerate((small_photo, b"no image", small_photo)):
        (tmp_path / "frames" / f"{number}.jpg").write_bytes(image)
    monkeypatch.chdir(tmp_path)
    running = serve()
    exec(compile(program.replace("localhost:8000", running.host), "docs/api.md", "exec"), {})
    told = capsys.readouterr().out.splitlines()
    lines = [line for line in told if " is ready on " not in line]  # the service's own
    assert lines[0] == "answered by fake"
    assert [line.split()[0] for line in lines[1:]] == ["0", "1", "2"]
    assert running.frames() == {"received": 3, "answered": 2, "bad_image": 1}
