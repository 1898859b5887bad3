"""`python -m service segment` for a person at a terminal: results, errors, exit statuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from model.bundle import Bundle, write_bundle
from service.__main__ import main

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture
def photo_file(tmp_path: Path, photo: Any) -> str:
    path = tmp_path / "photo.png"
    path.write_bytes(photo.encoded())
    return str(path)


@pytest.fixture(autouse=True)
def fake_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGVLM_BACKEND", "fake")


def test_mask_in_a_file(
    photo_file: str, photo: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mask.png"
    assert main(["segment", photo_file, "the red rectangle", "--out", str(out)]) == 0
    mask = np.asarray(Image.open(out))
    assert mask.dtype == bool
    assert (mask & photo.red).sum() / (mask | photo.red).sum() > 0.9
    assert str(out) in capsys.readouterr().out


def test_overlay_in_a_file(photo_file: str, tmp_path: Path) -> None:
    out = tmp_path / "overlay.png"
    arguments = ["segment", photo_file, "the red rectangle", "the blue ring"]
    assert main([*arguments, "--format", "overlay", "--out", str(out)]) == 0
    assert Image.open(out).size == (640, 400)


def test_json_on_the_terminal(
    photo_file: str, photo: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", photo_file, "red", "blue", "--threshold", "0.4"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [result["expression"] for result in answer["results"]] == ["red", "blue"]
    assert coco_mask.decode(answer["results"][0]["mask"]).shape == (400, 640)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["missing.jpg", "x"], "missing.jpg"),
        ([__file__, "x"], "send a JPEG"),
        (["PHOTO", "x", "y", "--out", "mask.png"], "--format overlay"),
        (["PHOTO", "x", "--format", "png"], "--out"),
        (["PHOTO", "x", "--threshold", "7"], "threshold"),
        (["PHOTO", ""], "empty"),
        (["PHOTO", "x", "--backend", "onnx", "--bundle", "nowhere"], "nowhere"),
        (["PHOTO", "x", "--out", "no/such/folder/mask.png"], "no/such/folder"),
    ],
)
def test_mistakes_of_the_caller_exit_with_2_and_say_what_to_do(
    arguments: list[str],
    message: str,
    photo_file: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [photo_file if argument == "PHOTO" else argument for argument in arguments]
    assert main(["segment", *given]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.out == ""


def test_wrong_setting_is_named(
    photo_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SEGVLM_MAX_PIXELS", "many")
    assert main(["segment", photo_file, "x"]) == 2
    assert "SEGVLM_MAX_PIXELS=many" in capsys.readouterr().err


def test_fault_of_the_model_exits_with_1(
    photo_file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*arguments: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr("service.backends.fake.FakeBackend.encode_image", broken)
    assert main(["segment", photo_file, "x"]) == 1
    assert "error: the model has stopped: RuntimeError: no memory" in capsys.readouterr().err


@pytest.fixture(scope="module")
def foreign_bundle(default_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sound files with right hashes, but the graphs are not those that answered the probe."""
    sound = Bundle.load(default_bundle)
    probe = sound.probe()
    folder = tmp_path_factory.mktemp("foreign")
    replace(probe, logits=probe.logits[:, ::-1].copy()).save(folder / "probe.npz")
    files = {name: default_bundle / name for name in sound.config.files}
    files["probe.npz"] = folder / "probe.npz"
    write_bundle(folder / "bundle", sound.config, files)
    return folder / "bundle"


@pytest.mark.parametrize("command", ["segment", "serve"])
def test_bundle_that_fails_its_own_question_is_refused(
    command: str, foreign_bundle: Path, photo_file: str, repo_root: Path
) -> None:
    arguments = {"segment": [photo_file, "the dog"], "serve": ["--port", "0"]}[command]
    finished = subprocess.run(
        [sys.executable, "-m", "service", command, "--bundle", foreign_bundle, *arguments],
        cwd=repo_root,
        env={**os.environ, "SEGVLM_BACKEND": "onnx", "SEGVLM_HOST": "127.0.0.1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 1
    assert "does not answer its bundle's own question" in finished.stderr.splitlines()[-1]
    assert "export the bundle again" in finished.stderr.splitlines()[-1]
    assert finished.stdout == ""


def test_help_shows_both_commands(repo_root: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "service", "--help"],
        cwd=repo_root,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "serve" in shown
    assert "segment" in shown
