"""The loop: it learns, it stops cleanly, and it goes on to the same weights."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from model.checkpoint import load
from training.__main__ import main
from training.config import config_from_dict
from training.data.dataset import TrainingBatches
from training.data.lmdb_file import StoreError
from training.data.lmdb_store import PhraseStore
from training.failures import TrainingError
from training.run_files import load_state
from training.run_log import RunLog, read_log
from training.setup import build_trainer
from training.trainer import Trainer

pytestmark = pytest.mark.long(40)


def _settings(settings: dict[str, Any], /, **sections: dict[str, Any]) -> dict[str, Any]:
    return {name: {**values, **sections.get(name, {})} for name, values in settings.items()}


def _trainer(settings: dict[str, Any], /, **sections: dict[str, Any]) -> Trainer:
    return build_trainer(config_from_dict(_settings(settings, **sections)))


def _newest(out: Path) -> dict[str, Any]:
    return load_state(sorted((out / "checkpoints").glob("*.pt"))[-1])


def _assert_same_run(first: Path, second: Path) -> None:
    """The same weights, bit for bit, and a log with each step once."""
    one, other = _newest(first), _newest(second)
    assert (one["step"], one["best"]) == (other["step"], other["best"])
    for part in ("model", "average"):
        for name, value in one[part].items():
            assert torch.equal(value, other[part][name]), f"{part} {name}"
    logs = [
        [(row["event"], row["step"], row.get("loss")) for row in read_log(out / "log.jsonl")]
        for out in (first, second)
    ]
    assert logs[0] == logs[1]


@pytest.fixture
def whole_run(whole_tiny_run: Path, tmp_path: Path) -> Path:
    """A copy, to change, of a run of six steps that nothing interrupted."""
    return Path(shutil.copytree(whole_tiny_run, tmp_path / "whole"))


def test_a_run_leaves_its_files(whole_run: Path) -> None:
    rows = read_log(whole_run / "log.jsonl")
    train = [row for row in rows if row["event"] == "train"]
    assert [row["step"] for row in train] == [1, 2, 3, 4, 5, 6]
    for name in ("bce", "focal", "dice", "iou", "gradient_norm", "lr_backbone", "lr_head"):
        assert all(row[name] >= 0 for row in train), name
    assert all(0 <= row["data_wait_share"] <= 1 < row["phrases_per_second"] for row in train)
    validations = [row for row in rows if row["event"] == "validation"]
    assert [row["step"] for row in validations] == [3, 6]
    best = max(row["all"]["mean_iou"] for row in validations)
    states = sorted(path.name for path in (whole_run / "checkpoints").iterdir())
    assert states == ["00000005.pt", "00000006.pt"]
    assert _newest(whole_run)["best"] == best
    for name in ("best", "last"):
        assert load(whole_run / f"{name}.safetensors").config.image_size == 64
    ended = json.loads((whole_run / "run.json").read_text())
    assert ended["finished"] and ended["step"] == 6 and ended["versions"]["torch"]
    assert len(list((whole_run / "samples").glob("*.png"))) == 2
    assert list((whole_run / "tensorboard").iterdir())
    assert not list(whole_run.rglob("*.partial*"))


def test_nothing_to_validate_on_is_refused_at_the_start(tiny_run: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"data\.val_split=val_miniv; .*\(train, val\)"):
        _trainer(tiny_run, data={"val_split": "val_miniv"})


def test_a_finished_run_is_left_as_it_is(whole_run: Path, tiny_run: dict[str, Any]) -> None:
    before = {path: path.read_bytes() for path in whole_run.rglob("*.safetensors")}
    _trainer(tiny_run, run={"out": str(whole_run)}).run()
    assert {path: path.read_bytes() for path in before} == before
    assert [row["step"] for row in read_log(whole_run / "log.jsonl")][-1] == 6
    assert json.loads((whole_run / "run.json").read_text())["step"] == 6


def test_it_learns(tiny_run: dict[str, Any]) -> None:
    optim = {"steps": 40, "lr": 0.003}
    trainer = _trainer(tiny_run, optim=optim, run={"validate_every": 1000, "save_every": 1000})
    trainer.run()
    losses = [
        row["loss"] for row in read_log(trainer.files.out / "log.jsonl") if row["event"] == "train"
    ]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_epochs_are_counted_in_phrases(tiny_run: dict[str, Any]) -> None:
    optim = {"steps": None, "epochs": 2, "schedule": "step", "milestones": [1]}
    trainer = _trainer(tiny_run, data={"phrases_per_image": 1}, optim=optim)
    phrases = sum(
        trainer.store.phrase_count(image_id) for image_id in trainer.store.image_ids("train")
    )
    assert trainer.order.units_per_epoch == phrases
    assert trainer.schedule.steps == -(-2 * phrases // 2)
    assert trainer.schedule.milestones == (-(-phrases // 2),)


def test_a_stop_comes_before_the_next_step(
    tiny_run: dict[str, Any], whole_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = _trainer(tiny_run, run={"save_every": 100})
    update = first.learner.update

    def update_then_signal(step: int, *rest: Any) -> Any:
        result = update(step, *rest)
        if step == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return result

    first.learner.update = update_then_signal  # type: ignore[method-assign]
    before = signal.getsignal(signal.SIGINT)
    first.run()
    assert signal.getsignal(signal.SIGINT) is before
    assert "same command again to go on at step 2" in capsys.readouterr().out
    assert _newest(first.files.out)["step"] == 2
    _trainer(tiny_run).run()  # another save_every changes no weights
    _assert_same_run(first.files.out, whole_run)


def test_a_truncated_checkpoint_falls_back_to_the_one_before(
    tiny_run: dict[str, Any], whole_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    newest = whole_run / "checkpoints" / "00000006.pt"
    weights = _newest(whole_run)["model"]
    newest.write_bytes(newest.read_bytes()[:1000])
    _trainer(tiny_run, run={"out": str(whole_run)}).run()
    printed = capsys.readouterr().out
    assert "trying the one before" in printed and "at step 5" in printed
    for name, value in _newest(whole_run)["model"].items():
        assert torch.equal(value, weights[name])


def test_a_full_disk_keeps_the_last_good_checkpoint(
    tiny_run: dict[str, Any], whole_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = torch.save

    def full_at_three(state: Any, file: Any) -> None:
        file.write(b"half a checkpoint")
        if state["step"] == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        file.seek(0)
        save(state, file)

    out = Path(tiny_run["run"]["out"])
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full_at_three)
        with pytest.raises(TrainingError, match=r"00000003\.pt .*No space left.*make room"):
            _trainer(tiny_run).run()
    assert sorted(path.name for path in out.glob("checkpoints/*")) == ["00000001.pt", "00000002.pt"]
    _trainer(tiny_run).run()
    _assert_same_run(out, whole_run)


def test_a_lost_data_worker_is_one_clear_line(
    tiny_run: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    get = TrainingBatches.__getitem__

    def die_at_two(self: TrainingBatches, item: int) -> Any:
        if item == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return get(self, item)

    monkeypatch.setattr(TrainingBatches, "__getitem__", die_at_two)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(_settings(tiny_run, data={"workers": 1})), encoding="utf-8")
    assert main(["train", "--config", str(config)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: a data worker died") and "lower data.workers" in said


def test_another_configuration_is_refused_in_the_same_directory(
    tiny_run: dict[str, Any],
) -> None:
    _trainer(tiny_run, optim={"steps": 1}).run()
    with pytest.raises(ValueError, match=r"optim\.lr"):
        _trainer(tiny_run, optim={"steps": 1, "lr": 0.5}).run()
    _trainer(tiny_run, optim={"steps": 1}, run={"keep": 5}, data={"workers": 1}).run()


def test_a_directory_is_for_one_run_at_a_time(tiny_run: dict[str, Any]) -> None:
    trainer = _trainer(tiny_run)
    lock = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); "
        "print(flush=True); sys.stdin.read()"
    )
    trainer.files.checkpoints.mkdir(parents=True)
    command = [sys.executable, "-c", lock, str(trainer.files.out / ".lock")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as other:  # type: ignore[call-overload]
        other.stdout.readline()
        with pytest.raises(ValueError, match="another process trains"):
            trainer.run()
        other.communicate()
    with trainer.files.locked():
        pass


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_loss_that_is_not_finite_stops_with_its_batch_saved(
    tiny_run: dict[str, Any], precision: str
) -> None:
    trainer = _trainer(tiny_run, optim={"precision": precision})
    update = trainer.learner.update

    def spoil(step: int, *rest: Any) -> Any:
        if step == 3:
            with torch.no_grad():
                trainer.learner.model.projector.dynamic.kernel.bias.fill_(float("nan"))
        return update(step, *rest)

    trainer.learner.update = spoil  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match=r"step 4 is not finite.*non_finite_batch"):
        trainer.run()
    saved = torch.load(trainer.files.out / "non_finite_batch_rank0.pt", weights_only=True)
    assert torch.equal(saved[0]["images"], trainer.batches[3].images)
    state = _newest(trainer.files.out)
    assert state["step"] == 3, "weights of a step that went wrong must not be kept"
    assert all(value.isfinite().all() for value in state["model"].values())


def test_gradients_that_are_not_finite_stop_too(tiny_run: dict[str, Any]) -> None:
    """The loss is finite; the weights behind it would not be, and must not be kept."""
    trainer = _trainer(tiny_run, optim={"accumulate": 2}, run={"save_every": 2})
    kernel = trainer.learner.model.projector.dynamic.kernel.weight
    update = trainer.learner.update

    def spoil(step: int, *rest: Any) -> Any:
        if step == 3:
            kernel.register_hook(lambda gradient: gradient / 0)
        return update(step, *rest)

    trainer.learner.update = spoil  # type: ignore[method-assign]
    with pytest.raises(FloatingPointError, match=r"the gradient of step 4 is not finite"):
        trainer.run()
    saved = torch.load(trainer.files.out / "non_finite_batch_rank0.pt", weights_only=True)
    for part, batch in enumerate(saved):
        assert torch.equal(batch["tokens"], trainer.batches[2 * 3 + part].tokens)
    assert len(saved) == 2 and _newest(trainer.files.out)["step"] == 2


def _said_by(settings: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> str:
    """What `train` says on its way out; it must end with status 2 and one line."""
    config = Path(settings["run"]["out"]).with_suffix(".yaml")
    config.write_text(yaml.safe_dump(settings), encoding="utf-8")
    assert main(["train", "--config", str(config)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1, said
    return said


@pytest.mark.parametrize("workers", [0, 1])
def test_a_photo_that_cannot_be_read_is_one_clear_line(
    tiny_run: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    workers: int,
) -> None:
    def lost(self: PhraseStore, image_id: str) -> Any:
        raise StoreError(f"the photo {image_id} is gone; prepare the store again")

    monkeypatch.setattr(PhraseStore, "photo", lost)
    said = _said_by(_settings(tiny_run, data={"workers": workers}), capsys)
    assert "is gone; prepare the store again" in said


def test_a_disk_that_is_full_for_the_log_is_one_clear_line(
    tiny_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: RunLog, event: str, step: int, row: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "log.jsonl")

    monkeypatch.setattr(RunLog, "_write", full)
    said = _said_by(tiny_run, capsys)
    assert "disk is full" in said and "log.jsonl" in said and "same command again" in said


def test_fewer_processes_than_a_run_was_begun_with_is_said(
    tiny_run: dict[str, Any], whole_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = whole_run / "checkpoints" / "00000006.pt"
    torch.save({**load_state(path), "processes": 8}, path)
    _trainer(tiny_run, run={"out": str(whole_run)}).run()
    assert "was on 8 processes and is now on 1" in capsys.readouterr().out
