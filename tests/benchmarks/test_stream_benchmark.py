"""benchmarks.stream measures what it says: every frame, its lag, and what was dropped."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks import stream


def test_video_is_the_same_each_time_and_moves() -> None:
    video = stream.drawn_video(6, 96, 64)
    assert video == stream.drawn_video(6, 96, 64)
    assert len(set(video)) == 6
    pixels = [Image.open(BytesIO(jpeg)).convert("RGB").tobytes() for jpeg in video]
    assert len(set(pixels)) == 6
    again = stream.alike_no_more(video, 1)
    assert not set(again) & set(video)
    assert Image.open(BytesIO(again[3])).convert("RGB").tobytes() == pixels[3]


def test_lag_counts_from_when_a_frame_was_due(monkeypatch: pytest.MonkeyPatch) -> None:
    run = stream.Run(due={0: 10.0, 1: 10.1, 2: 10.2, 3: 10.3})
    for number, dropped, now in ((0, 0, 10.5), (3, 2, 10.7)):
        monkeypatch.setattr(stream.time, "perf_counter", lambda now=now: now)
        run.note(json.dumps({"type": "result", "frame": number, "dropped": dropped}))
    told = run.summary()
    assert (told["frames"], told["answered"], told["dropped"]) == (4, 2, 2)
    assert told["lag_milliseconds"]["p50"] == pytest.approx(450)
    assert told["answered_per_second"] == pytest.approx(2 / 0.7)


def test_folder_without_frames_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no \*\.jpg"):
        stream.main(["--video", str(tmp_path), "--no-bare"])


def test_command_counts_every_frame(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "stream.json"
    command = ["--backend", "fake", "--frames", "40", "--rates", "400", "--no-bare"]
    stream.main([*command, "--width", "96", "--height", "64", "--json", str(file)])
    result: dict[str, Any] = json.loads(file.read_text())
    flat, scheduled = result["rows"]
    assert (flat["answered"], flat["dropped"]) == (40, 0)
    assert scheduled["answered"] + scheduled["dropped"] == 40
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table[2:]] == ["flat out", "400/s"]
