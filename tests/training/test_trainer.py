"""The loop: it learns, it stops cleanly, and it resumes to the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from model.checkpoint import load
from training.config import config_from_dict
from training.run_files import load_state, save_state
from training.setup import build_trainer
from training.trainer import Trainer, parameter_groups


def _trainer(settings: dict[str, Any], /, **sections: dict[str, Any]) -> Trainer:
    merged = {name: {**values, **sections.get(name, {})} for name, values in settings.items()}
    return build_trainer(config_from_dict(merged))


def _log(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text("utf-8").splitlines()]


def _assert_same_weights(first: Path, second: Path) -> None:
    one, other = load_state(first / "last.pt"), load_state(second / "last.pt")
    assert one["step"] == other["step"]
    for part in ("model", "average"):
        for name, value in one[part].items():
            assert torch.equal(value, other[part][name]), f"{part} {name}"


@pytest.fixture
def whole_run(tiny_run: dict[str, Any], tmp_path: Path) -> Path:
    """A run of six steps that nothing interrupted."""
    out = tmp_path / "whole"
    _trainer(tiny_run, run={"out": str(out)}).run()
    return out


def test_a_run_leaves_its_files(whole_run: Path) -> None:
    rows = _log(whole_run)
    assert [row["step"] for row in rows if row["event"] == "train"] == [1, 2, 3, 4, 5, 6]
    validations = [row for row in rows if row["event"] == "validation"]
    assert [row["step"] for row in validations] == [3, 6]
    best = max(row["all"]["mean_iou"] for row in validations)
    assert load_state(whole_run / "last.pt")["best"] == best
    assert load(whole_run / "best.safetensors").config.image_size == 64
    assert list((whole_run / "tensorboard").iterdir())
    assert not list(whole_run.glob("*.partial"))


def test_it_learns(tiny_run: dict[str, Any]) -> None:
    optim = {"steps": 40, "lr": 0.003}
    trainer = _trainer(tiny_run, optim=optim, run={"validate_every": 1000, "save_every": 1000})
    trainer.run()
    losses = [row["loss"] for row in _log(trainer.out) if row["event"] == "train"]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_a_stopped_run_resumes_to_the_same_weights(
    tiny_run: dict[str, Any], whole_run: Path
) -> None:
    first = _trainer(tiny_run)
    step = first.train_step

    def stop_after_two(batch: Any) -> Any:
        first.stopping = first.step >= 1  # what SIGTERM sets
        return step(batch)

    first.train_step = stop_after_two  # type: ignore[method-assign]
    first.run()
    assert load_state(first.out / "last.pt")["step"] == 2
    _trainer(tiny_run).run()
    _assert_same_weights(first.out, whole_run)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_process_resumes_to_the_same_weights(
    tiny_run: dict[str, Any], whole_run: Path, tmp_path: Path, repo_root: Path, number: int
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(tiny_run), encoding="utf-8")
    command = [sys.executable, "-m", "training", "train", "--config", str(config)]
    out = Path(tiny_run["run"]["out"])
    environment = {**os.environ, "PYTHONPATH": str(repo_root)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment) as process:
        deadline = time.monotonic() + 120
        while not (out / "last.pt").is_file() and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        process.wait(timeout=60)
    assert load_state(out / "last.pt")["step"] < 6, "it was to be stopped in the middle"
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=120)
    _assert_same_weights(out, whole_run)


def test_another_configuration_is_refused_in_the_same_directory(
    tiny_run: dict[str, Any],
) -> None:
    _trainer(tiny_run, optim={"steps": 1}).run()
    with pytest.raises(ValueError, match=r"optim\.lr"):
        _trainer(tiny_run, optim={"steps": 1, "lr": 0.5}).run()


def test_a_loss_that_is_not_finite_stops_with_its_batch_saved(tiny_run: dict[str, Any]) -> None:
    trainer = _trainer(tiny_run)
    trainer.out.mkdir()
    with torch.no_grad():
        trainer.model.projector.dynamic.kernel.bias.fill_(float("nan"))
    batch = trainer.batches[0]
    with pytest.raises(FloatingPointError, match="non_finite_batch"):
        trainer.train_step(batch)
    saved = torch.load(trainer.out / "non_finite_batch.pt", weights_only=True)
    assert torch.equal(saved[0], batch.images)


def test_groups_hold_every_trainable_parameter_once(tiny_run: dict[str, Any]) -> None:
    trainer = _trainer(tiny_run, optim={"weight_decay": 0.1, "backbone_lr_factor": 0.5})
    groups = parameter_groups(trainer.model, trainer.config.optim)
    seen = [id(parameter) for group in groups for parameter in group["params"]]
    wanted = [id(p) for p in trainer.model.parameters() if p.requires_grad]
    assert sorted(seen) == sorted(wanted)
    backbone = {id(p) for p in trainer.model.image_encoder.parameters()}
    for group in groups:
        inside = {id(p) in backbone for p in group["params"]}
        assert inside == {group["base_lr"] == pytest.approx(0.0005)}
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.1}


def test_a_state_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_bytes(b"not a zip file")
    with pytest.raises(ValueError, match=r"last\.pt is not a training state"):
        load_state(path)
    save_state(path, {"step": 3})
    assert load_state(path) == {"step": 3}
    assert not path.with_name("last.pt.partial").exists()
