"""The paper's ablation (Table 2): four rows that differ in their switches alone.

Every row of every seed is an ordinary run directory, OUT/<row>-seed<n>/, trained by
`python -m training train` and scored by `python -m training evaluate`, each in a process of its
own. What is finished is not done again, so the same command goes on after a kill.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .config import TrainConfig, config_from_dict

SCORES = "scores.json"
_PLAIN_PROJECTOR = {"deformable": False, "residual": False, "se": False}


@dataclass(frozen=True)
class AblationRow:
    """A row of Table 2: its directory name, its title, and what it changes in the base."""

    name: str
    title: str
    model: Mapping[str, bool]
    loss: Mapping[str, float]

    def settings(self, base: TrainConfig) -> dict[str, Any]:
        """The base's settings with this row's switches, as plain YAML types."""
        tree = base.to_dict()
        tree["model"]["overrides"] = {**tree["model"]["overrides"], **self.model}
        tree["loss"] |= self.loss
        return tree


ROWS = (
    AblationRow(
        "baseline",
        "Baseline (CRIS)",
        _PLAIN_PROJECTOR,
        {"bce_weight": 1.0, "focal_weight": 0.0, "dice_weight": 0.0},
    ),
    AblationRow("raf", "+ RAF loss", _PLAIN_PROJECTOR, {}),
    AblationRow(
        "deformable-residual",
        "+ deformable + residual",
        {"deformable": True, "residual": True, "se": False},
        {},
    ),
    AblationRow("se", "+ SE (= SegVLM)", {"deformable": True, "residual": True, "se": True}, {}),
)
"""Each row adds to the one before it; the first is CRIS's projector with CRIS's loss."""


@dataclass(frozen=True)
class AblationRun:
    """One row with one seed."""

    row: AblationRow
    seed: int
    out: Path
    config: TrainConfig

    @property
    def scores(self) -> Path:
        """What `evaluate --json` writes; a run that has it is finished."""
        return self.out / SCORES


def plan(base: TrainConfig, seeds: int, out: Path) -> list[AblationRun]:
    """All runs, seed by seed, so that every row of a seed is there before the next begins.

    Raises:
        ValueError: if there is no seed.
    """
    if seeds < 1:
        raise ValueError("an ablation needs --seeds 1 or more; 2 or more show a spread")
    runs = []
    for seed in range(base.run.seed, base.run.seed + seeds):
        for row in ROWS:
            place = out / f"{row.name}-seed{seed}"
            tree = row.settings(base)
            tree["run"] |= {"out": str(place), "seed": seed}
            runs.append(AblationRun(row, seed, place, config_from_dict(tree)))
    return runs


def run_ablation(
    base: TrainConfig,
    out: Path,
    *,
    seeds: int = 1,
    split: str = "",
    launcher: str = "",
    jobs: int = 1,
) -> list[AblationRun]:
    """Train and score whatever is not finished.

    Args:
        base: the configuration of the whole SegVLM, the last row.
        split: what is scored; "" for the base's validation split.
        launcher: what starts a training process in place of Python, for instance
            "torchrun --nproc_per_node 8".
        jobs: runs at a time, on a machine that has room for several.

    Raises:
        ValueError: if a training or an evaluation fails; its own message stands above.
    """
    runs = plan(base, seeds, out)
    start = shlex.split(launcher) or [sys.executable]

    def finish(run: AblationRun) -> None:
        _finish(run, split or base.data.val_split, start)

    if jobs == 1:
        for run in runs:
            finish(run)
    else:
        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(finish, runs))
    return runs


def _finish(run: AblationRun, split: str, start: Sequence[str]) -> None:
    if run.scores.is_file():
        _refuse_other_scores(run, split)
        return
    run.out.mkdir(parents=True, exist_ok=True)
    config = run.out / "ablation.yaml"
    config.write_text(yaml.safe_dump(run.config.to_dict(), sort_keys=False), encoding="utf-8")
    _call([*start, "-m", "training", "train", "--config", str(config)], run)
    partial = run.scores.with_suffix(".partial")
    evaluate = [sys.executable, "-m", "training", "evaluate", "--no-probes", "--split", split]
    evaluate += ["--checkpoint", str(run.out / "best.safetensors"), "--json", str(partial)]
    evaluate += ["--data", run.config.data.store, "--threshold", str(run.config.run.threshold)]
    _call(evaluate, run)
    partial.replace(run.scores)


def _refuse_other_scores(run: AblationRun, split: str) -> None:
    scored = json.loads(run.scores.read_text(encoding="utf-8")).get("split")
    if scored != split:
        raise ValueError(
            f"{run.scores} holds scores of the split {scored!r}, not {split!r}; delete it to "
            "score again"
        )


def _call(command: Sequence[str], run: AblationRun) -> None:
    """Run a command to its end, its output in the run's own log."""
    with (run.out / "console.log").open("a", encoding="utf-8") as log:
        ended = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, check=False)
    if ended.returncode:
        raise ValueError(
            f"{run.out.name}: `{shlex.join(command)}` ended with {ended.returncode}; see "
            f"{run.out / 'console.log'}, then give the same command again"
        )


def table(runs: Sequence[AblationRun]) -> str:
    """The rows as Markdown: mean over the seeds, and the half range where there are several."""
    columns = ("0.5", "0.6", "0.7", "0.8", "0.9")
    lines = [
        "| variant | seeds | mean IoU | cumulative IoU | P@50 | P@60 | P@70 | P@80 | P@90 |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in ROWS:
        groups = [
            json.loads(run.scores.read_text(encoding="utf-8"))["all"]
            for run in runs
            if run.row is row
        ]
        series = [[group["mean_iou"] for group in groups], [group["cum_iou"] for group in groups]]
        series += [[group["precision"][column] for group in groups] for column in columns]
        cells = " | ".join(_spread([100 * value for value in values]) for values in series)
        lines.append(f"| {row.title} | {len(groups)} | {cells} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    mean = sum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {(max(values) - min(values)) / 2:.2f}"
