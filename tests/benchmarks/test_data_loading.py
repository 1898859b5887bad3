"""The benchmark of the loader runs, and its parts add up."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest


def test_it_runs_on_a_store_of_its_own(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = repo_root / "benchmarks" / "data_loading.py"
    specification = importlib.util.spec_from_file_location("data_loading", path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    store, out = tmp_path / "drawn.lmdb", tmp_path / "result.json"
    module.make_store(store, photos=4)
    command = f"x --data {store} --size 64 --workers 0 --images 16 --json {out}"
    monkeypatch.setattr(sys, "argv", command.split())
    module.main()
    result = json.loads(out.read_text("utf-8"))
    assert sum(result["shares"].values()) == pytest.approx(1)
    assert set(result["shares"]) == {"records", "decode", "letterbox", "mask", "tokenise"}
    assert result["images_per_second"]["0"] > 0
    assert result["megapixels_per_photo"] == pytest.approx(0.3072)
    assert result["machine"]["pillow"]
