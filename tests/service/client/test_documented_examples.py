"""The Python of docs/client.md, run as it stands against a live service."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def blocks(document: Path) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", document.read_text(), re.MULTILINE | re.DOTALL)


def test_examples_run(
    make_live_service: Callable[..., Any],
    photo: Any,
    tmp_path: Path,
    repo_root: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(photo.encoded())
    found = blocks(repo_root / "docs" / "client.md")
    assert len(found) == 4
    names = {"url": make_live_service().url, "photo": path, "photos": [path, path]}
    for block in found:
        scope: dict[str, Any] = {**names, "__name__": "__main__"}
        exec(compile(block, "docs/client.md", "exec"), scope)
    printed = capsys.readouterr().out
    assert "the dog" in printed and "400 bad_image" in printed
