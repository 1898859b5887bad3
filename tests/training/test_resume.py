"""A run that was killed at any step and goes on makes the weights of one that was not.

Also two processes, and what they learn beside one. The runs are those of `interrupted_runs.py`.
"""

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

import pytest
import torch
import yaml

from training.run_files import load_state
from training.run_log import read_log

# Five runs that are killed and resumed come first.
pytestmark = [pytest.mark.timeout(600), pytest.mark.long(100)]

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


@pytest.fixture(scope="module")
def config(
    tiny_settings: Callable[[Path, Path], dict[str, Any]],
    tiny_store: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The file of `tiny_run`, in a folder for its runs."""
    folder = tmp_path_factory.mktemp("interrupted")
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tiny_settings(tiny_store, folder / "run")), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def environment(repo_root: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(repo_root), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def ended(config: Path, environment: dict[str, str]) -> dict[str, list[dict[str, Any]]]:
    """Of each run and start: the processes' exit statuses and what they said."""
    script = Path(__file__).with_name("interrupted_runs.py")
    told = subprocess.run(
        [sys.executable, str(script), str(config), str(config.parent)],
        env=environment,
        cwd=config.parent,
        timeout=580,
        capture_output=True,
    )
    assert told.returncode == 0, told.stderr.decode()
    ended: dict[str, list[dict[str, Any]]] = json.loads(told.stdout.splitlines()[-1])
    return ended


def _statuses(ended: dict[str, list[dict[str, Any]]], name: str) -> list[list[int]]:
    return [start["statuses"] for start in ended[name]]


def _newest(out: Path) -> dict[str, Any]:
    return load_state(sorted((out / "checkpoints").glob("*.pt"))[-1])


def _assert_same_run(folder: Path, name: str, whole: str) -> None:
    """The same weights, optimiser and best score, bit for bit, and a log with each step once."""
    first, second = folder / name, folder / whole
    one, other = _newest(first), _newest(second)
    assert (one["step"], one["best"]) == (other["step"], other["best"]) == (6, one["best"])
    for part in ("model", "average"):
        for entry, value in one[part].items():
            assert torch.equal(value, other[part][entry]), f"{part} {entry}"
    for number, moments in one["optimizer"]["state"].items():
        for entry, value in moments.items():
            assert torch.equal(value, other["optimizer"]["state"][number][entry])
    logs = [
        [
            (row["event"], row["step"], row.get("loss"), row.get("all"))
            for row in read_log(out / "log.jsonl")
        ]
        for out in (first, second)
    ]
    assert logs[0] == logs[1]
    for file in ("best.safetensors", "last.safetensors"):
        assert (first / file).read_bytes() == (second / file).read_bytes(), file
    assert json.loads((first / "run.json").read_text("utf-8"))["finished"]
    left = [path for path in first.rglob("*") if "partial" in path.name]
    assert not left, "what a kill left behind is cleared away"


@pytest.mark.parametrize(
    ("name", "statuses"),
    [
        ("killed", [[-signal.SIGKILL], [0]]),
        ("half_written", [[-signal.SIGKILL], [-signal.SIGKILL], [0]]),
        ("stopped", [[0], [0]]),
    ],
)
def test_an_interrupted_run_goes_on_to_the_same_weights(
    ended: dict[str, Any], config: Path, name: str, statuses: list[list[int]]
) -> None:
    """Killed between checkpoints with a data worker; twice while it wrote; told to stop."""
    assert _statuses(ended, name) == statuses, ended[name]
    _assert_same_run(config.parent, name, "whole")


@pytest.mark.parametrize(
    ("name", "first"), [("killed_of_two", [2, -signal.SIGKILL]), ("stopped_of_two", [0, 0])]
)
def test_two_processes_go_on_to_the_same_weights(
    ended: dict[str, Any], config: Path, name: str, first: list[int]
) -> None:
    """The second of two is killed, or alone told to stop."""
    assert _statuses(ended, name) == [first, [0, 0]], ended[name]
    _assert_same_run(config.parent, name, "whole_of_two")


def test_a_stop_says_how_to_go_on(ended: dict[str, Any]) -> None:
    for name in ("stopped", "stopped_of_two"):
        stopped, resumed = ended[name]
        assert "give the same command again to go on at step 3" in stopped["said"][0]
        assert "at step 3" in resumed["said"][0]


def test_a_lost_process_is_one_clear_line(ended: dict[str, Any]) -> None:
    said = ended["killed_of_two"][0]["said"][0].splitlines()
    assert said[-1].startswith("error: another process of the run is gone")
    assert not [line for line in said if "Traceback" in line]


def test_a_broken_loss_stops_all_and_keeps_its_batch(ended: dict[str, Any], config: Path) -> None:
    """The loss of the second process alone is not finite."""
    assert _statuses(ended, "broken_of_two") == [[2, 2]], ended["broken_of_two"]
    for said in ended["broken_of_two"][0]["said"]:
        assert "error: the loss of step 3 is not finite" in said
    out = config.parent / "broken_of_two"
    (path,) = out.glob("non_finite_batch_*.pt")
    (batch,) = torch.load(path, weights_only=True)
    assert path.name == "non_finite_batch_rank1.pt" and batch["targets"].isnan().all()
    assert _newest(out)["step"] == 2


def test_validation_counts_no_phrase_twice(ended: dict[str, Any], config: Path) -> None:
    """Three images among two processes: a padded one would be counted twice."""
    del ended
    for name in ("whole", "whole_of_two"):
        rows = read_log(config.parent / name / "log.jsonl")
        counts = {row["num_phrases"] for row in rows if row["event"] == "validation"}
        assert counts == {26}
    assert json.loads((config.parent / "whole_of_two" / "run.json").read_text())["processes"] == 2


def test_two_processes_learn_what_one_learns(ended: dict[str, Any], config: Path) -> None:
    """Loss, gradients, weights and statistics of three global batches, in float64."""
    assert _statuses(ended, "learn_in_1") == [[0]] and _statuses(ended, "learn_in_2") == [[0, 0]]
    one, two = (
        torch.load(config.parent / f"gradients{world}.pt", weights_only=True) for world in (1, 2)
    )
    assert [sum(counts) for counts in two["counts"]] == [counts[0] for counts in one["counts"]]
    assert any(first != second for first, second in two["counts"]), "parts were to be unequal"
    assert torch.allclose(one["losses"], two["losses"], rtol=1e-6)  # summed in float32
    # A shift that the next norm takes away has no gradient but rounding, 1e-14 of it, which AdamW
    # divides by 1e-8: weights may differ by a hundred-thousandth of the learning rate.
    for part, noise in (("gradients", 1e-12), ("weights", 1e-8), ("average", 1e-8)):
        assert one[part].keys() == two[part].keys()
        for name, value in one[part].items():
            error = (value.double() - two[part][name].double()).abs().max()
            assert error <= 1e-6 * value.double().abs().max() + noise, f"{part} {name}"


def _wait_for_a_checkpoint(out: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not list(out.glob("checkpoints/*.pt")):
        assert time.monotonic() < deadline and process.poll() is None, "no checkpoint came"
        time.sleep(0.01)


def test_torchrun_passes_a_stop_on(
    ended: dict[str, Any], config: Path, environment: dict[str, str]
) -> None:
    """It signals data workers too, which must outlive their trainer's last step."""
    del ended
    out = config.parent / "launched"
    command = [*TORCHRUN, "-m", "training", "train", "--config", str(config), f"run.out={out}"]
    command += ["data.images_per_batch=4", "data.workers=1", "optim.steps=500"]
    command += ["run.validate_every=1000"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, cwd=config.parent, **pipes) as process:
        _wait_for_a_checkpoint(out, process)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=120)
    assert "stopped, give the same command again to go on" in said, said
    assert "error: " not in said
    rows = [row for row in read_log(out / "log.jsonl") if row["event"] == "train"]
    assert _newest(out)["step"] == len(rows) < 500
    whole = read_log(config.parent / "whole_of_two" / "log.jsonl")
    losses = [row["loss"] for row in whole if row["event"] == "train"]
    common = min(len(rows), len(losses))
    assert [row["loss"] for row in rows[:common]] == losses[:common]


def _trainers(launcher: int) -> list[int]:
    """Process numbers of the two trainers that a launcher started."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return [int(child) for child in children]


@pytest.mark.slow
def test_torchrun_goes_on_after_it_lost_a_process(
    ended: dict[str, Any], config: Path, environment: dict[str, str]
) -> None:
    """The same command again, and the weights of a run that lost none."""
    del ended
    out = config.parent / "lost"
    command = [*TORCHRUN, "-m", "training", "train", "--config", str(config), f"run.out={out}"]
    command += ["data.images_per_batch=4"]
    options: dict[str, Any] = {"env": environment, "cwd": config.parent, "text": True}
    with subprocess.Popen(command, **options) as process:
        _wait_for_a_checkpoint(out, process)
        os.kill(_trainers(process.pid)[1], signal.SIGKILL)
        assert process.wait(timeout=120) != 0, "a lost process must not look like success"
    subprocess.run(command, **options, check=True, timeout=240)
    _assert_same_run(config.parent, "lost", "whole_of_two")
