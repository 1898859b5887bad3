"""`python -m service segment FOLDER` with obstacles: nothing is lost, mixed up or done twice."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pycocotools.coco import COCO

from service import folder_command
from service.__main__ import main
from service.backends.fake import FakeBackend
from tests.service.client.scripted_server import GOOD, Script, answer, playing, silence
from tests.waiting import wait_until


@pytest.fixture(autouse=True)
def fake_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGVLM_BACKEND", "fake")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten red pictures of different widths."""
    place = tmp_path / "photos"
    place.mkdir()
    for number in range(10):
        Image.new("RGB", (60 + number, 40), (220, 30, 30)).save(place / f"{number:02}.png")
    return place


def out(folder: Path) -> Path:
    return folder.parent / "results.json"


def run(folder: Path, *more: str) -> int:
    return main(
        ["segment", str(folder), "red", "--out", str(folder.parent / "results.json"), *more]
    )


def start(folder: Path, script: Script, repo_root: Path, **streams: Any) -> subprocess.Popen[bytes]:
    """The command as a process of its own, against a server."""
    command = ["segment", str(folder), "red", "--out", str(out(folder)), "--server", script.url]
    return subprocess.Popen(
        [sys.executable, "-m", "service", *command],
        cwd=repo_root,
        # What a shell starts in its background ignores Ctrl-C, and so would this.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **streams,
    )


def images(folder: Path) -> dict[str, int]:
    """Names and widths in the results."""
    return {
        each["file_name"]: each["width"] for each in json.loads(out(folder).read_text())["images"]
    }


def journal(folder: Path) -> Path:
    return folder.parent / "results.json.journal"


def noted(folder: Path) -> set[str]:
    return {json.loads(line)["file"] for line in journal(folder).read_text().splitlines()[1:]}


@pytest.fixture
def halfway(folder: Path, repo_root: Path) -> Path:
    """The folder after a run that a server answered three times and that was killed then."""
    with playing(*[GOOD] * 3, silence) as script:
        process = start(folder, script, repo_root)
        wait_until(lambda: script.silent == 7 and len(noted(folder)) == 3, "three answers")
        process.kill()
        process.wait(60)
    return folder


def test_a_slow_file_does_not_keep_the_others_out_of_the_journal(
    folder: Path, repo_root: Path
) -> None:
    with playing(silence, GOOD) as script:
        process = start(folder, script, repo_root)
        wait_until(lambda: journal(folder).exists() and len(noted(folder)) == 9, "all but one")
        process.kill()
        process.wait(60)
        first = noted(folder)
    with playing(GOOD) as script:
        assert start(folder, script, repo_root).wait(60) == 0
        assert len(script.received) == 1  # nothing is asked twice
    assert len(first) == 9 and len(images(folder)) == 10


def test_ctrl_c_keeps_what_is_done(folder: Path, repo_root: Path) -> None:
    with playing(*[GOOD] * 3, silence) as script:
        process = start(folder, script, repo_root, stderr=subprocess.PIPE)
        wait_until(lambda: script.silent == 7 and len(noted(folder)) == 3, "three answers")
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"same command again" in told
    COCO(str(out(folder)))
    assert images(folder).keys() == noted(folder)


def test_a_folder_of_the_same_names_is_another(
    halfway: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = halfway.parent / "other"
    shutil.copytree(halfway, other)
    assert run(other) == 2
    assert "another question" in capsys.readouterr().err
    assert not out(halfway).exists()


def test_another_model_does_not_go_on(halfway: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(halfway) == 2
    told = capsys.readouterr().err
    assert "'name': 'm'" in told and "'name': 'fake'" in told
    assert len(images(halfway)) == 3


def test_files_that_were_moved_away_stay_in_the_results(halfway: Path) -> None:
    for name in noted(halfway):
        (halfway / name).unlink()
    with playing(GOOD) as script:
        assert run(halfway, "--server", script.url) == 0
        assert len(script.received) == 7
    assert len(images(halfway)) == 10


def test_two_runs_at_once_are_one_too_many(
    folder: Path, repo_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with playing(silence) as script:
        process = start(folder, script, repo_root)
        try:
            wait_until(lambda: script.silent == 8, "the first run to ask")
            assert run(folder) == 2
        finally:
            process.kill()
            process.wait(60)
    assert "another run is writing" in capsys.readouterr().err
    assert run(folder) == 0  # a kill leaves no lock behind


def test_a_damaged_journal_is_told(halfway: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = journal(halfway).read_bytes().splitlines(keepends=True)
    for damage in (
        b"garbage\n",
        b"\xff\n",
        b"[]\n",
        lines[1].replace(b'"size":[2,3]', b'"size":[9,9]'),
    ):
        journal(halfway).write_bytes(b"".join([lines[0], damage, *lines[2:]]))
        capsys.readouterr()
        assert run(halfway) == 2
        assert "line 2 is damaged" in capsys.readouterr().err
    journal(halfway).write_bytes(b"garbage\n")
    assert run(halfway) == 2
    assert "line 1 is damaged" in capsys.readouterr().err


def test_a_short_queue_is_no_fault_of_the_photos(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGVLM_MAX_QUEUE", "2")
    assert run(folder) == 0
    assert len(images(folder)) == 10


def test_overlays_asked_for_later_are_drawn_without_the_model(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "bad.png").write_text("no photo")  # so that the run stays unfinished
    assert run(folder) == 1
    (folder / "bad.png").unlink()

    def none(*arguments: object) -> None:
        raise AssertionError("the model was asked")

    monkeypatch.setattr(FakeBackend, "encode_image", none)
    drawn = folder.parent / "drawn"
    assert run(folder, "--overlays", str(drawn)) == 0
    assert len(list(drawn.iterdir())) == 10
    with Image.open(drawn / "03.png.png") as overlay:
        assert overlay.size == (63, 40)


def test_what_was_drawn_and_what_is_hidden_are_no_photos(folder: Path) -> None:
    (folder / "bad.png").write_text("no photo")
    (folder / "._00.png").write_text("what a Mac leaves on foreign disks")
    options = ("--recursive", "--overlays", str(folder / "drawn"))
    for _ in range(2):
        assert run(folder, *options) == 1
        assert len(images(folder)) == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--overlays", "photos"], "holds the photos"),
        (["--overlays", "."], "holds the photos"),
        (["--api-key-file", "key"], "--server, which is missing"),
        (["--server", "http://x", "--backend", "fake"], "its own model"),
        (["--server", "localhost:8000"], "http://localhost:8000"),
        (["--server", "http://x", "--api-key-file", "absent"], "absent"),
    ],
)
def test_options_that_cannot_be(
    options: list[str],
    message: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder.parent)
    assert run(folder, *options) == 2
    assert message in capsys.readouterr().err
    assert len(list(folder.iterdir())) == 10


@pytest.mark.parametrize("option", [["--recursive"], ["--api-key-file", "key"]])
def test_options_of_a_folder_are_refused_for_a_photo(
    option: list[str], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", str(folder / "00.png"), "red", *option]) == 2
    assert f"{option[0]} is for a folder" in capsys.readouterr().err


def test_a_refused_key_ends_the_run_and_keeps_what_is_done(
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "key").write_text("secret\n")
    # One at a time: a refusal that overtakes an answer leaves that photo to the next run.
    monkeypatch.setattr(folder_command, "_TOGETHER", 1)
    refusal = answer(401, b'{"reason": "unauthorized", "detail": "send a key"}')
    with playing(*[GOOD] * 3, refusal) as script:
        assert run(folder, "--server", script.url, "--api-key-file", str(tmp_path / "key")) == 2
        assert {each.headers["authorization"] for each in script.received} == {"Bearer secret"}
    told = capsys.readouterr().err
    assert told.count("send a key") == 1 and "secret" not in told
    assert len(images(folder)) == 3


def test_a_photo_that_the_server_cannot_take_does_not_end_the_run(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refusal = answer(413, b'{"reason": "too_large", "detail": "scale it down"}')
    with playing(GOOD, refusal, GOOD) as script:
        assert run(folder, "--server", script.url) == 1
    assert capsys.readouterr().err.count("scale it down") == 1
    assert len(images(folder)) == 9


def test_a_model_that_stops_ends_the_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr(FakeBackend, "encode_image", broken)
    assert run(folder) == 1
    assert "the model has stopped: RuntimeError: no memory" in capsys.readouterr().err


def test_progress_is_shown_to_a_person(folder: Path, repo_root: Path) -> None:
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    shown = b""
    with playing(GOOD) as script:
        process = start(folder, script, repo_root, stderr=theirs)
        os.close(theirs)
        try:
            while chunk := os.read(ours, 4096):
                shown += chunk
        except OSError:  # so Linux says that the other side is closed
            pass
        assert process.wait(60) == 0
    os.close(ours)
    assert b"10/10" in shown
