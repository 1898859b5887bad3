"""Each step stands in the log once, and every line of it is JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.run_log import RunLog, read_log


def _row(**values: float) -> dict[str, float]:
    row = {"epoch": 0.5, "loss": 1.0, "iou": 0.1, "images_per_second": 2.0, "data_wait_share": 0.0}
    return {**row, **values}


def _write(out: Path, resumed_at: int, steps: range, **values: float) -> None:
    out.mkdir(exist_ok=True)
    log = RunLog(out, resumed_at)
    for step in steps:
        log.train(step, 9, _row(**values))
    log.close()


def test_a_resumed_run_forgets_what_came_behind_its_checkpoint(tmp_path: Path) -> None:
    out = tmp_path / "run"
    _write(out, 0, range(1, 6), loss=1.0)
    with (out / "log.jsonl").open("a") as file:
        file.write('{"event": "train", "st')  # killed in the middle of a line
    _write(out, 3, range(4, 8), loss=2.0)
    losses = [(row["step"], row["loss"]) for row in read_log(out / "log.jsonl")]
    expected = [(step, 1.0 if step <= 3 else 2.0) for step in range(1, 8)]
    assert losses == expected
    board = EventAccumulator(str(out / "tensorboard"))
    board.Reload()
    shown = [(event.step, event.value) for event in board.Scalars("train/loss")]
    assert shown == expected


def test_a_gradient_norm_without_end_is_null(tmp_path: Path) -> None:
    """What fp16's scaler skips; JSON has no word for it."""

    def refuse(word: str) -> Any:
        raise AssertionError(word)

    _write(tmp_path, 0, range(1, 2), gradient_norm=math.inf)
    (line,) = (tmp_path / "log.jsonl").read_text("utf-8").splitlines()
    assert json.loads(line, parse_constant=refuse)["gradient_norm"] is None


def test_validation_has_its_scores_and_its_picture(tmp_path: Path) -> None:
    log = RunLog(tmp_path, 0)
    scores = {"mean_iou": 0.25, "cum_iou": 0.5, "num": 8}
    log.validation(4, {"all": scores}, np.zeros((6, 5, 3), dtype=np.uint8))
    log.close()
    (row,) = read_log(tmp_path / "log.jsonl")
    assert (row["event"], row["step"], row["all"]) == ("validation", 4, scores)
    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert board.Scalars("validation/mean_iou")[0].value == 0.25
    assert [(image.height, image.width) for image in board.Images("validation/masks")] == [(6, 5)]
