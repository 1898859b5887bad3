"""The ablation: rows that differ in their switches alone, resumed, scored, tabulated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from training import ablation
from training.__main__ import main
from training.ablation import ROWS, AblationRun, plan, run_ablation, table
from training.config import TrainConfig, config_from_dict

SWITCHES = {"deformable", "residual", "se"}
LOSSES = {"bce_weight", "focal_weight", "dice_weight"}


@pytest.fixture
def base(tiny_run: dict[str, Any]) -> TrainConfig:
    tree = {**tiny_run, "optim": {**tiny_run["optim"], "steps": 2}}
    return config_from_dict(tree)


def in_process(commands: list[list[str]]) -> Any:
    """What stands in for a process of its own: the same command, in this one."""

    def call(command: Sequence[str], run: AblationRun) -> None:
        arguments = list(command[list(command).index("training") + 1 :])
        commands.append(arguments)
        if main(arguments):
            raise ValueError(f"{run.out.name}: failed")

    return call


def test_rows_differ_in_their_switches_alone(base: TrainConfig, tmp_path: Path) -> None:
    runs = plan(base, 2, tmp_path)
    assert [run.out.name for run in runs[:4]] == [f"{row.name}-seed0" for row in ROWS]
    assert len(runs) == 8 and {run.seed for run in runs} == {0, 1}
    for run in runs:
        tree, whole = run.config.to_dict(), base.to_dict()
        assert tree["run"].pop("seed") == run.seed
        assert tree["run"].pop("out") == str(run.out)
        for key in ("seed", "out"):
            whole["run"].pop(key)
        for key in SWITCHES:
            tree["model"]["overrides"].pop(key)
        for key in LOSSES:
            tree["loss"].pop(key), whole["loss"].pop(key)
        assert tree == whole


def test_the_rows_are_those_of_table_2() -> None:
    switches = [tuple(row.model[key] for key in sorted(SWITCHES)) for row in ROWS]
    assert switches == [(False,) * 3, (False,) * 3, (True, True, False), (True, True, True)]
    assert [row.loss.get("dice_weight", 1.0) for row in ROWS] == [0.0, 1.0, 1.0, 1.0]


def test_it_trains_scores_and_goes_on(
    base: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []
    monkeypatch.setattr(ablation, "_call", in_process(commands))
    runs = run_ablation(base, tmp_path)
    assert [command[0] for command in commands] == ["train", "evaluate"] * 4
    text = table(runs)
    for run in runs:
        score = json.loads(run.scores.read_text())["all"]["mean_iou"]
        assert f"| {run.row.title} | 1 | {100 * score:.2f} |" in text
    runs[1].scores.unlink()
    commands.clear()
    run_ablation(base, tmp_path)
    assert [command[0] for command in commands] == ["train", "evaluate"]
    assert runs[1].scores.is_file()
    with pytest.raises(ValueError, match="holds scores of the split 'val'"):
        run_ablation(base, tmp_path, split="train")


def test_a_failed_run_names_its_log(base: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"baseline-seed0: .* ended with 1; see .*console\.log"):
        run_ablation(base, tmp_path, launcher="false")


def test_no_seed_is_refused(base: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--seeds 1 or more"):
        plan(base, 0, tmp_path)


def test_the_spread_is_the_half_range() -> None:
    assert ablation._spread([40.0, 44.0]) == "42.00 ± 2.00"
    assert ablation._spread([40.0]) == "40.00"
