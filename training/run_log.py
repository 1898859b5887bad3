"""What a run tells while it goes: lines on the console, log.jsonl, TensorBoard. No login anywhere.

log.jsonl holds one JSON object a line: `event` ("train" or "validation"), `step`, `time` (seconds
since 1970), and the event's own numbers. A step stands in it once, also after a resume.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter


class RunLog:
    """The log of the main process.

    step: what the run goes on from; rows behind it are of a run that was killed, and are dropped.
    """

    def __init__(self, out: Path, step: int) -> None:
        self._path = out / "log.jsonl"
        _forget_behind(self._path, step)
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=step + 1)

    def train(self, step: int, steps: int, row: Mapping[str, float]) -> None:
        """One line of training."""
        # JSON knows no NaN: the gradient norm of a step that fp16's scaler skipped.
        finite = {name: value if math.isfinite(value) else None for name, value in row.items()}
        self._write("train", step, finite)
        for name, value in row.items():
            self._board.add_scalar(f"train/{name}", value, step)
        print(
            f"step {step}/{steps}  epoch {row['epoch']:.2f}  loss {row['loss']:.4f}  "
            f"IoU {row['iou']:.3f}  {row['images_per_second']:.1f} images/s  "
            f"waited {row['data_wait_share']:.0%}",
            flush=True,
        )

    def validation(self, step: int, report: Mapping[str, Any], picture: NDArray[np.uint8]) -> None:
        """The report of all validation phrases, and a picture (H, W, 3) of some of them."""
        self._write("validation", step, report)
        for name in ("mean_iou", "cum_iou"):
            self._board.add_scalar(f"validation/{name}", report["all"][name], step)
        self._board.add_image("validation/masks", picture, step, dataformats="HWC")
        scores = report["all"]
        print(
            f"step {step}: validation mean IoU {scores['mean_iou']:.4f}, "
            f"cumulative {scores['cum_iou']:.4f} over {scores['num']} phrases",
            flush=True,
        )

    def close(self) -> None:
        """Write what is held back."""
        self._board.close()

    def _write(self, event: str, step: int, row: Mapping[str, Any]) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"event": event, "step": step, "time": time.time(), **row}))
            file.write("\n")


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a log.jsonl; the last line may be cut by a kill and is then left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _forget_behind(path: Path, step: int) -> None:
    if not path.is_file():
        return
    kept = [row for row in read_log(path) if row["step"] <= step]
    partial = path.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    partial.replace(path)
