"""Two processes over gloo: they learn what one learns, and they go on after a kill."""

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
from torch import nn

from model.layers import SentenceBatchNorm
from training.distributed import Processes, synchronise_batch_norm
from training.run_files import load_state
from training.run_log import read_log

# Gradients of two global batches in float64, where the order of a sum does not show; parts of
# different numbers of phrases. The second batch shows running statistics and moved weights.
LEARN = """
import sys
from pathlib import Path
import torch
from training import setup
from training.config import load_config
from training.distributed import join

build = setup.build_model
setup.build_model = lambda section: build(section).double()
processes = join()
trainer = setup.build_trainer(load_config(Path(sys.argv[1])), processes)
for step in range(2):
    batch = trainer.batches[step]
    phrases = trainer.processes.sum(torch.tensor(len(batch.tokens))).item()
    update = trainer.learner.update(step, [batch], phrases)
losses = processes.sum(torch.stack(list(update.terms)))
gathered = processes.gather((processes.rank, len(batch.tokens)))
if processes.is_main:
    model = trainer.learner.model
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    torch.save((losses, gradients, dict(model.named_buffers()), gathered), sys.argv[2])
processes.leave()
"""


def _launch(repo_root: Path, arguments: list[str], processes: int) -> list[str]:
    if processes == 1:
        return [sys.executable, *arguments]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, *launcher, *arguments]


def _environment(repo_root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(repo_root), "OMP_NUM_THREADS": "1"}


@pytest.fixture
def two_run(tiny_run: dict[str, Any]) -> dict[str, Any]:
    """`tiny_run` with two images for each of two processes."""
    return {**tiny_run, "data": {**tiny_run["data"], "images_per_batch": 4}}


def test_two_processes_learn_what_one_learns(
    two_run: dict[str, Any], tmp_path: Path, repo_root: Path
) -> None:
    two_run["model"]["overrides"] |= {"dropout": 0.0, "text_dropout": 0.0}
    config, script = tmp_path / "config.yaml", tmp_path / "learn.py"
    config.write_text(yaml.safe_dump(two_run), encoding="utf-8")
    script.write_text(LEARN, encoding="utf-8")
    answers = []
    for count in (1, 2):
        out = tmp_path / f"{count}.pt"
        command = _launch(repo_root, [str(script), str(config), str(out)], count)
        subprocess.run(command, env=_environment(repo_root), check=True, timeout=240)
        answers.append(torch.load(out, weights_only=True))
    (losses, gradients, buffers, _), (losses_2, gradients_2, buffers_2, gathered) = answers
    assert [rank for rank, _ in gathered] == [0, 1]
    assert losses_2.tolist() == pytest.approx(losses.tolist(), rel=1e-5)
    assert gradients.keys() == gradients_2.keys()
    for name, value in gradients.items():
        scale = value.abs().max().clamp(min=1e-6)
        assert ((value - gradients_2[name]).abs().max() / scale).item() < 1e-3, name
    for name, value in buffers.items():
        assert torch.allclose(value.double(), buffers_2[name].double(), rtol=1e-5), name


def _wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 200
    while not list(path.glob("*.pt")):
        assert time.monotonic() < deadline and process.poll() is None, "no checkpoint came"
        time.sleep(0.01)


def _trainers(launcher: int) -> list[int]:
    """Process numbers of the two trainers that a launcher started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(child) for child in children]


def test_two_processes_go_on_after_a_kill(
    two_run: dict[str, Any], tmp_path: Path, repo_root: Path
) -> None:
    """One of two is killed with SIGKILL, then all are asked to stop with SIGTERM."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(two_run), encoding="utf-8")
    arguments = ["-m", "training", "train", "--config", str(config)]
    out, whole = Path(two_run["run"]["out"]), tmp_path / "whole"
    environment = _environment(repo_root)
    command = _launch(repo_root, arguments, 2)
    options: dict[str, Any] = {"cwd": tmp_path, "env": environment}
    subprocess.run([*command, f"run.out={whole}"], **options, check=True, timeout=240)

    with subprocess.Popen(command, **options) as process:
        _wait_for(out / "checkpoints", process)
        os.kill(_trainers(process.pid)[1], signal.SIGKILL)
        assert process.wait(timeout=120) != 0, "a lost process must not look like success"
    steps = [load_state(path)["step"] for path in sorted(out.glob("checkpoints/*.pt"))]
    assert steps and steps[-1] < 6, "it was to be stopped in the middle"

    subprocess.run(command, **options, check=True, timeout=240)
    one, other = (
        load_state(sorted(folder.glob("checkpoints/*.pt"))[-1]) for folder in (out, whole)
    )
    assert one["step"] == other["step"] == 6 and one["best"] == other["best"]
    for part in ("model", "average"):
        for name, value in one[part].items():
            assert torch.equal(value, other[part][name]), f"{part} {name}"
    rows = read_log(out / "log.jsonl")
    assert [row["step"] for row in rows if row["event"] == "train"] == [1, 2, 3, 4, 5, 6]
    validation = [row for row in rows if row["event"] == "validation"][-1]
    assert validation["num_phrases"] == sum(
        validation["kinds"][k]["num"] for k in validation["kinds"]
    )
    assert json.loads((out / "run.json").read_text())["processes"] == 2


class _Alone:
    """Stands in for the default group of one process."""

    @staticmethod
    def all_reduce(values: torch.Tensor) -> None:
        """The sum over one process."""


@pytest.mark.parametrize("rows", [1, 5])
def test_the_synchronised_norm_of_one_process_is_the_norm(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.distributed.dist", _Alone)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 4), SentenceBatchNorm(4))
    synchronised = nn.Sequential(nn.Linear(3, 4), SentenceBatchNorm(4))
    synchronised.load_state_dict(plain.state_dict())
    synchronise_batch_norm(synchronised, Processes(torch.device("cpu"), rank=0, world=2))
    assert type(synchronised[1]) is not SentenceBatchNorm
    values = torch.randn(rows, 3)
    for mode in (True, False):
        plain.train(mode), synchronised.train(mode)
        assert torch.allclose(plain(values), synchronised(values), atol=1e-6)
    for name, value in plain.state_dict().items():
        assert torch.allclose(value, synchronised.state_dict()[name], atol=1e-6), name


def test_one_process_needs_no_group() -> None:
    alone = Processes(torch.device("cpu"))
    assert alone.is_main and alone.gather("x") == ["x"]
    assert alone.sum(torch.tensor([3, 4])).tolist() == [3, 4]
    alone.leave()
