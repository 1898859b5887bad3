"""python -m training, as a person types it: prepare, preview, train, evaluate, export, import."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from model.bundle import Bundle
from training.__main__ import main

pytestmark = pytest.mark.long(40)


def test_from_annotations_to_a_scored_bundle(
    tiny_annotations: Path,
    tiny_run: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store, sheet = tmp_path / "store.lmdb", tmp_path / "sheet.png"
    assert (
        main(["prepare", "instances", "--annotations", str(tiny_annotations), "--out", str(store)])
        == 0
    )
    assert "train: 9 images" in capsys.readouterr().out
    assert main(["preview", "--data", str(store), "--count", "4", "--out", str(sheet)]) == 0
    assert np.asarray(Image.open(sheet)).std() > 10

    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_run), encoding="utf-8")
    run = Path(tiny_run["run"]["out"])
    overrides = [f"data.store={store}", "optim.steps=3"]
    assert main(["train", "--config", str(config), *overrides]) == 0

    best, scores = str(run / "best.safetensors"), tmp_path / "scores.json"
    where = ["--data", str(store)]
    assert main(["evaluate", "--checkpoint", best, *where, "--json", str(scores)]) == 0
    out = tmp_path / "bundle"
    export = ["export", "--checkpoint", best, "--out", str(out), "--threshold", "0.35", *where]
    assert main([*export, "--scores", str(scores), "--training", str(run / "config.yaml")]) == 0
    bundle = Bundle.load(out)
    assert bundle.config.training["optim"]["steps"] == 3
    assert set(bundle.config.parity) >= {"random", "real"}

    again = tmp_path / "again.json"
    assert main(["evaluate", "--bundle", str(out), *where, "--json", str(again)]) == 0
    first, second = (json.loads(path.read_text("utf-8")) for path in (scores, again))
    assert first["num_phrases"] == second["num_phrases"] > 0
    assert second["all"]["mean_iou"] == pytest.approx(first["all"]["mean_iou"], abs=2e-3)
    capsys.readouterr()
    assert main(["evaluate", "--bundle", str(out), *where, "--sweep"]) == 0
    assert "best: 0." in capsys.readouterr().out


def test_import_weights_tells_what_it_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "start.safetensors"
    command = ["import-weights", "--preset", "segvlm-lite", "--from", "imagenet"]
    assert main([*command, "--out", str(out)]) == 0
    assert out.is_file()
    told = capsys.readouterr().out
    assert "loaded" in told
    assert "made new" in told
    assert "left over" in told


@pytest.mark.parametrize(
    "command",
    [
        ["evaluate", "--checkpoint", "nowhere.safetensors", "--data", "nowhere.lmdb"],
        ["evaluate", "--bundle", "nowhere", "--data", "nowhere.lmdb"],
        ["train", "--config", "nowhere.yaml"],
        ["preview", "--data", "nowhere.lmdb", "--out", "sheet.png"],
        ["prepare", "instances", "--annotations", "nowhere.json", "--out", "store.lmdb"],
    ],
)
def test_a_missing_file_ends_with_one_clear_line(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "nowhere" in told
    assert "Traceback" not in told
