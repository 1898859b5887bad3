"""Reading what `train`, `ablate` and `evaluate` left in a run's directory.

Used are config.yaml, log.jsonl, scores.json (what `evaluate --json` writes), run.json (written when
a run ends) and best.safetensors. Whatever is missing or foreign becomes a line for the reader of
the report; it never stops the report of the other runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from model.config import SegVLMConfig, preset_config
from training.losses import RafConfig
from training.metrics import PRECISION_THRESHOLDS

from .variants import label_of, variant_of

THRESHOLDS: tuple[str, ...] = tuple(str(threshold) for threshold in PRECISION_THRESHOLDS)
SCORES_FILE = "scores.json"
CHECKPOINT_FILE = "best.safetensors"

Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class Run:
    """One training run, as its files tell it.

    config: config.yaml as it stands. model, loss: what its sections resolve to.
    train_log, validation_log: rows of log.jsonl, one a step, in the order of the steps.
    finished: whether the run reached its end. step: the last step that was logged.
    scores: content of scores.json; None where the run is unfinished or has none that can be used.
    """

    path: Path
    name: str
    config: Mapping[str, Any]
    model: SegVLMConfig
    loss: RafConfig
    train_log: tuple[Row, ...]
    validation_log: tuple[Row, ...]
    finished: bool
    step: int
    scores: Mapping[str, Any] | None

    @property
    def variant(self) -> str:
        return variant_of(self.model, self.loss)

    @property
    def label(self) -> str:
        return label_of(self.variant, self.model, self.loss)

    @property
    def seed(self) -> int:
        return int(self.section("run").get("seed", 0))

    @property
    def steps(self) -> int | None:
        """Steps that the settings ask for; None where they say epochs."""
        steps = self.section("optim").get("steps")
        return int(steps) if steps else None

    @property
    def checkpoint(self) -> Path | None:
        path = self.path / CHECKPOINT_FILE
        return path if path.is_file() else None

    def section(self, name: str) -> Mapping[str, Any]:
        """A section of the configuration, empty where it has none."""
        section = self.config.get(name)
        return section if isinstance(section, Mapping) else {}


def find_runs(paths: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """The runs in `paths`, and a line for each thing that could not be used.

    A path is a run's directory or a directory of runs, as `ablate` makes one.

    Raises:
        ValueError: there is no usable run at all.
    """
    runs: list[Run] = []
    notes: list[str] = []
    seen: set[Path] = set()
    for folder in _folders(paths, notes):
        if folder.resolve() in seen:
            continue
        seen.add(folder.resolve())
        try:
            run, its_notes = read_run(folder)
        except ValueError as error:
            notes.append(str(error))
        else:
            runs.append(run)
            notes += its_notes
    if not runs:
        listed = "".join(f"\n  {note}" for note in notes)
        raise ValueError(
            "no run to report on; pass directories that `python -m training train` or `ablate` "
            f"wrote{listed}"
        )
    return runs, notes


def read_run(path: Path) -> tuple[Run, list[str]]:
    """A run, and what is missing in it.

    Raises:
        ValueError: `path` holds no run of this project.
    """
    config, model, loss = _read_config(path)
    rows = _read_log(path / "log.jsonl")
    train = _one_per_step(row for row in rows if row.get("event") == "train")
    validation = _one_per_step(row for row in rows if _is_validation(row))
    step = max((int(row["step"]) for row in (*train, *validation)), default=0)
    steps = (config.get("optim") or {}).get("steps")
    finished = _is_finished(path, step, steps)
    scores, notes = _scores_of(path) if finished else (None, [_unfinished(path, step, steps)])
    run = Run(
        path=path,
        name=path.name,
        config=config,
        model=model,
        loss=loss,
        train_log=train,
        validation_log=validation,
        finished=finished,
        step=step,
        scores=scores,
    )
    if not train:
        notes.append(f"{path.name}: no training rows in log.jsonl, so it has no curve")
    return run, notes


def read_scores(path: Path) -> dict[str, Any]:
    """What `evaluate --json` wrote.

    Raises:
        ValueError: no such file, or not such content; the message names the command.
    """
    command = "make it with `python -m training evaluate ... --json FILE`"
    if not path.is_file():
        raise ValueError(f"{path.name} is missing; {command}")
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _check_group(content["all"])
        content = {
            **content,
            "split": str(content["split"]),
            "threshold": None if content["threshold"] is None else float(content["threshold"]),
            "num_phrases": int(content["num_phrases"]),
        }
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} does not hold an evaluation's scores ({error!r}); {command}"
        ) from error
    return content


def _scores_of(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    try:
        return read_scores(path / SCORES_FILE), []
    except ValueError as error:
        return None, [f"{path.name}: not in the tables. {error}"]


def _unfinished(path: Path, step: int, steps: int | None) -> str:
    asked = f" of {steps}" if steps else ""
    return (
        f"{path.name}: unfinished, at step {step}{asked}, so it is not in the tables; the same "
        "train or ablate command goes on with it"
    )


def fingerprint_of(scores: Mapping[str, Any]) -> str:
    """Eight letters that tell data sets apart: a digest of what the store was made from."""
    data = scores.get("data")
    if not data:
        return "unknown"
    text = json.dumps(data, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _folders(paths: Sequence[Path], notes: list[str]) -> Iterator[Path]:
    for path in paths:
        if (path / "config.yaml").is_file():
            yield path
            continue
        if not path.is_dir():
            notes.append(f"{path} is not a directory")
            continue
        children = sorted(child for child in path.iterdir() if child.is_dir())
        with_config = [child for child in children if (child / "config.yaml").is_file()]
        if not with_config:
            notes.append(f"{path} holds no run: no config.yaml in it or in a directory of it")
        yield from with_config


def _read_config(path: Path) -> tuple[dict[str, Any], SegVLMConfig, RafConfig]:
    file = path / "config.yaml"
    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
        section = config["model"]
        model = preset_config(section["preset"], **(section.get("overrides") or {}))
        loss = RafConfig(**(config.get("loss") or {}))
    except FileNotFoundError:
        raise ValueError(f"{path} holds no run: it has no config.yaml") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} is foreign: its config.yaml is not a training configuration ({reason})"
        ) from error
    return dict(config), model, loss


def _read_log(path: Path) -> list[Row]:
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue  # a run that was killed while it wrote leaves half a line
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def _one_per_step(rows: Iterator[Row]) -> tuple[Row, ...]:
    """The last row of each step: a resumed run writes some of its steps again."""
    by_step = {row["step"]: row for row in rows}
    return tuple(by_step[step] for step in sorted(by_step))


def _is_validation(row: Row) -> bool:
    overall = row.get("all")
    return row.get("event") == "validation" and isinstance(overall, dict) and "mean_iou" in overall


def _is_finished(path: Path, step: int, steps: int | None) -> bool:
    """By run.json; a run of an older version, which has none, by its last step."""
    file = path / "run.json"
    if file.is_file():
        try:
            return bool(json.loads(file.read_text(encoding="utf-8")).get("finished"))
        except (ValueError, AttributeError):
            return False
    return steps is not None and step >= steps


def _check_group(group: Mapping[str, Any]) -> None:
    numbers = [group["mean_iou"], group["cum_iou"], *(group["precision"][t] for t in THRESHOLDS)]
    for number in numbers:
        if not 0 <= float(number) <= 1:
            raise ValueError(f"a score of {number}, outside 0..1")
    if int(group["num"]) < 1:
        raise ValueError("scores over no phrases")
