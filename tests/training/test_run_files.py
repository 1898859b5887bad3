"""Files that are whole or not at all, and what is kept of them."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from training import run_files
from training.data.dataset import Batch
from training.failures import TrainingError, explained
from training.run_files import RunFiles, load_state, refuse_other_config


def _files(out: Path, keep: int = 2) -> RunFiles:
    files = RunFiles(out, keep)
    files.checkpoints.mkdir(parents=True)
    return files


def _steps(files: RunFiles) -> list[int]:
    return [int(path.stem) for path in sorted(files.checkpoints.glob("*"))]


@pytest.mark.parametrize("keep", [1, 3])
def test_the_last_states_stay(tmp_path: Path, keep: int) -> None:
    files = _files(tmp_path, keep)
    for step in range(1, 6):
        files.save_state({"step": step})
    assert _steps(files) == list(range(6 - keep, 6))
    state = files.newest_state()
    assert state is not None and state["step"] == 5
    assert files.state_of(5)["step"] == 5


def test_what_cannot_be_read_never_takes_the_place_of_what_can(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest is cut; the run goes on from the one before, and keeps one."""
    files = _files(tmp_path, keep=1)
    files.save_state({"step": 3})
    (files.checkpoints / "00000009.pt").write_bytes(b"cut")
    state = files.newest_state()
    assert state is not None and state["step"] == 3
    assert "00000009.pt is not a training state" in capsys.readouterr().out
    files.save_state({"step": 4})
    assert _steps(files) == [4]


def test_nothing_but_what_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    files = _files(tmp_path)
    assert files.newest_state() is None
    (files.checkpoints / "00000009.pt").write_bytes(b"cut")
    with pytest.raises(ValueError, match="delete the directory to start afresh"):
        files.newest_state()


def test_another_machine_without_the_directory_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="all machines of the run share"):
        _files(tmp_path).state_of(7)


@pytest.mark.parametrize(
    "fault",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"),
        SafetensorError("I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    files = _files(tmp_path)
    files.save_state({"step": 1})
    best = tmp_path / "best.safetensors"
    best.write_bytes(b"the best so far")

    def full(value: Any, target: Any) -> None:
        if isinstance(target, Path):
            target.write_bytes(b"half")
        raise fault

    monkeypatch.setattr(torch, "save", full)
    monkeypatch.setattr(run_files, "save", full)
    for write in (lambda: files.save_state({"step": 2}), lambda: files.save_weights(None, "best")):
        with pytest.raises(TrainingError, match=r"could not be written.*make room"):
            write()
    assert best.read_bytes() == b"the best so far"
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["00000001.pt", best.name]
    assert load_state(files.checkpoints / "00000001.pt")["step"] == 1


def test_what_a_kill_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    files = _files(tmp_path)
    files.save_state({"step": 1})
    kept = sorted(tmp_path.rglob("*.pt"))
    left = ["best.safetensors.partial", ".best.safetensors.partial.x1", "checkpoints/2.pt.partial"]
    for name in left:
        (tmp_path / name).write_bytes(b"half")
    with files.locked():
        assert sorted(tmp_path.rglob("*.p*t*")) == kept
        assert not files.ended
    files.write_end({"finished": True})
    assert files.ended


def test_a_broken_batch_is_kept_by_the_process_that_has_it(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "run", 1)
    batch = Batch(*(torch.full((2,), float(part)) for part in range(4)))
    assert files.save_broken((), rank=0) == files.save_broken((batch,), rank=3)
    (path,) = (tmp_path / "run").iterdir()
    assert path.name == "non_finite_batch_rank3.pt"
    (kept,) = torch.load(path, weights_only=True)
    fields = ["images", "tokens", "targets", "image_index", "objects", "roles", "names"]
    assert list(kept) == fields


def test_what_changes_no_weights_may_change(tmp_path: Path) -> None:
    begun = {"run": {"out": "a", "seed": 0}, "data": {"sizes": ((0.0, 64),), "workers": 0}}
    moved = {"run": {"out": "b", "seed": 0}, "data": {"sizes": [(0.0, 64)], "workers": 8}}
    refuse_other_config(begun, moved, tmp_path)
    with pytest.raises(ValueError, match=r"other settings \(run\.seed\)"):
        refuse_other_config(begun, {**begun, "run": {"out": "a", "seed": 1}}, tmp_path)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.ENOENT, "No such file or directory", "weights.bin"),
            "a file cannot be read or written (No such file or directory: weights.bin)",
        ),
        (
            OSError(errno.EDQUOT, "Disk quota exceeded", "log.jsonl"),
            "the disk is full (Disk quota exceeded: log.jsonl); make room",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "),
            "a data worker died (DataLoader worker (pid 7) is killed by signal: Killed. )",
        ),
        (
            ValueError(
                "Caught StoreError in DataLoader worker process 0.\nOriginal Traceback (most "
                "recent call last):\n  File x\nStoreError: truncated; prepare it again\n"
            ),
            "a data worker failed: StoreError: truncated; prepare it again",
        ),
        (torch.OutOfMemoryError("CUDA out of memory.\nmore"), "the GPU's memory is full (CUDA"),
        (RuntimeError("Timed out waiting 1800000ms for recv"), "another process of the run is"),
    ],
)
def test_failures_from_outside_are_one_line(error: Exception, line: str) -> None:
    told = explained(error)
    assert isinstance(told, TrainingError)
    assert str(told).startswith(line) and "\n" not in str(told)


@pytest.mark.parametrize("error", [ValueError("yours"), RuntimeError("ours")])
def test_other_failures_stay_what_they_are(error: Exception) -> None:
    assert explained(error) is error
