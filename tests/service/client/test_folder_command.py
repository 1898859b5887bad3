"""`python -m service segment FOLDER`: every file once, whatever interrupts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from service.__main__ import main
from service.client_exchange import Retry

PATIENCE = 60.0


@pytest.fixture(autouse=True)
def fake_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGVLM_BACKEND", "fake")


@pytest.fixture
def folder(tmp_path: Path, photo: Any) -> Path:
    """Three photos, one of them further down, and a text."""
    (tmp_path / "photos" / "below").mkdir(parents=True)
    for name in ("b.png", "a.PNG", "below/c.png"):
        (tmp_path / "photos" / name).write_bytes(photo.encoded())
    (tmp_path / "photos" / "notes.txt").write_text("no photo")
    return tmp_path / "photos"


def run(folder: Path, out: Path, *more: str) -> int:
    return main(["segment", str(folder), "red", "blue", "--out", str(out), *more])


def names(out: Path) -> list[str]:
    return [image["file_name"] for image in json.loads(out.read_text())["images"]]


def test_results_are_coco_json(folder: Path, photo: Any, tmp_path: Path) -> None:
    out = tmp_path / "results.json"
    assert run(folder, out, "--recursive", "--overlays", str(tmp_path / "drawn")) == 0
    assert names(out) == ["a.PNG", "b.png", "below/c.png"]
    document = json.loads(out.read_text())
    assert [each["name"] for each in document["categories"]] == ["red", "blue"]
    mask = coco_mask.decode(document["annotations"][0]["segmentation"]).astype(bool)
    assert (mask & photo.red).sum() / (mask | photo.red).sum() > 0.9
    drawn = Image.open(tmp_path / "drawn" / "below" / "c.png.png")
    assert drawn.size == (640, 400)
    assert (np.asarray(drawn) != np.asarray(photo.picture)).any()
    assert sorted(each.name for each in tmp_path.iterdir()) == ["drawn", "photos", "results.json"]


def test_a_server_answers_the_same(
    folder: Path, tmp_path: Path, make_live_service: Callable[..., Any]
) -> None:
    live = make_live_service(image_size=416)
    local, remote = tmp_path / "local.json", tmp_path / "remote.json"
    assert run(folder, local) == run(folder, remote, "--server", live.url) == 0
    documents = [json.loads(out.read_text()) for out in (local, remote)]
    assert documents[0]["images"] == documents[1]["images"]
    assert len(documents[0]["annotations"]) == len(documents[1]["annotations"]) == 4


def test_a_bad_file_is_told_and_tried_again(
    folder: Path, tmp_path: Path, photo: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    (folder / "broken.jpg").write_bytes(b"no image")
    assert run(folder, out) == 1
    assert "broken.jpg" in capsys.readouterr().err
    assert names(out) == ["a.PNG", "b.png"]
    (folder / "broken.jpg").write_bytes(photo.encoded("JPEG"))
    assert run(folder, out) == 0
    assert names(out) == ["a.PNG", "b.png", "broken.jpg"]
    assert not list(tmp_path.glob("*.journal"))


def test_complete_results_are_not_overwritten(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    assert run(folder, out) == 0
    before = out.read_bytes()
    assert run(folder, out) == 2
    assert "complete" in capsys.readouterr().err
    assert out.read_bytes() == before


def test_a_killed_run_goes_on_and_does_nothing_twice(
    folder: Path, tmp_path: Path, photo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(400):
        (folder / f"more{number:03}.png").write_bytes(photo.encoded())
    out = tmp_path / "results.json"
    journal = tmp_path / "results.json.journal"
    command = [sys.executable, "-m", "service", "segment", str(folder), "red", "blue"]
    process = subprocess.Popen([*command, "--out", str(out)], stderr=subprocess.DEVNULL)
    end = time.monotonic() + PATIENCE
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 5):
        assert time.monotonic() < end and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait(PATIENCE)
    lines = journal.read_bytes().splitlines()
    assert 5 < len(lines) < 400
    journal.write_bytes(b"\n".join(lines) + b'\n{"file": "cut sho')
    done = len(lines) - 1

    import service.folder_command as command_module

    read: list[str] = []
    original = command_module._together

    def counted(names: list[str], *rest: Any) -> Any:
        read.extend(names)
        return original(names, *rest)

    monkeypatch.setattr(command_module, "_together", counted)
    assert run(folder, out) == 0
    assert len(read) == 402 - done and len(names(out)) == 402
    assert not journal.exists()


def test_another_questions_journal_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results.json"
    (folder / "broken.jpg").write_bytes(b"no image")
    assert run(folder, out) == 1
    assert main(["segment", str(folder), "green", "--out", str(out)]) == 2
    assert "another question" in capsys.readouterr().err


def test_a_server_that_is_not_there_ends_the_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("service.client.Retry", lambda: Retry(attempts=1))
    assert run(folder, tmp_path / "results.json", "--server", "http://127.0.0.1:9") == 2
    assert "no answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--format", "png", "--out", "x.json"], "COCO JSON"),
        ([], "--out"),
    ],
)
def test_options_that_do_not_fit(
    folder: Path, arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", str(folder), "red", *arguments]) == 2
    assert complaint in capsys.readouterr().err


def test_an_empty_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["segment", str(tmp_path), "red", "--out", str(tmp_path / "x.json")]) == 2
    assert "no images" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []
