"""The directory of a run: checkpoints that are whole or not at all, and a lock.

config.yaml               what was asked for
log.jsonl, tensorboard/   see `run_log`
checkpoints/00000200.pt   everything that step 201 depends on; the last few are kept
best.safetensors          the weights with the best validation mean IoU
last.safetensors          the weights at the end, once the run has ended
run.json                  how it ended
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml

from model.checkpoint import save
from model.segvlm import SegVLM

from .failures import TrainingError, first_line

STATE_FORMAT = 2
CHANGEABLE = frozenset({"run.out", "run.keep", "run.log_every", "run.save_every", "data.workers"})
"""Settings that a run may be continued with, because they do not change its weights."""


class RunFiles:
    """The files of one run. Only the main process writes.

    keep: how many checkpoints stay.
    """

    def __init__(self, out: Path, keep: int) -> None:
        self.out, self.keep = out, keep
        self.checkpoints = out / "checkpoints"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory against a second run.

        Raises:
            ValueError: if another process trains in it.
        """
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        with (self.out / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(
                    f"another process trains in {self.out}; wait until it ends, or give run.out "
                    "another directory"
                ) from None
            yield

    def write_config(self, settings: dict[str, Any]) -> None:
        """The settings of a new run, for a person and for `report`."""
        text = yaml.safe_dump(settings, sort_keys=False)
        (self.out / "config.yaml").write_text(text, encoding="utf-8")

    def save_state(self, state: dict[str, Any]) -> None:
        """Keep a state, then drop those that are too old.

        Raises:
            TrainingError: if the disk does not take it; the older states are untouched.
        """
        path = self.checkpoints / f"{state['step']:08d}.pt"
        partial = path.with_suffix(".partial")
        try:
            with partial.open("wb") as file:
                torch.save({"format": STATE_FORMAT, **state}, file)
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            _sync_folder(self.checkpoints)
        except (OSError, RuntimeError) as error:  # torch wraps a full disk in a RuntimeError
            partial.unlink(missing_ok=True)
            raise TrainingError(
                f"the checkpoint of step {state['step']} could not be written to "
                f"{self.checkpoints} ({first_line(error)}); make room and give the same command "
                "again, it goes on from the last one that is whole"
            ) from error
        for old in self._states()[self.keep :]:
            old.unlink()

    def newest_state(self) -> dict[str, Any] | None:
        """The newest state that can be read; says which ones cannot. None in a new run.

        Raises:
            ValueError: if there are states but none of them can be read.
        """
        states = self._states()
        for path in states:
            try:
                return load_state(path)
            except ValueError as error:
                print(f"{error}; trying the one before", flush=True)
        if states:
            raise ValueError(
                f"no state in {self.checkpoints} can be read; delete the directory to start afresh"
            )
        return None

    def save_weights(self, model: SegVLM, name: str) -> None:
        """Write `name`.safetensors: the network alone, for `evaluate` and `export`."""
        path = self.out / f"{name}.safetensors"
        partial = self.out / f"{name}.partial.safetensors"
        try:
            save(model, partial)
        except Exception as error:
            partial.unlink(missing_ok=True)
            raise TrainingError(f"{path} could not be written ({first_line(error)})") from error
        partial.replace(path)

    def write_end(self, summary: dict[str, Any]) -> None:
        """run.json, whose presence says that the run has ended."""
        (self.out / "run.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")

    def _states(self) -> list[Path]:
        """Newest first."""
        return sorted(self.checkpoints.glob("*.pt"), reverse=True)


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state; holds tensors and plain values only, so nothing in it is executed.

    Raises:
        ValueError: if the file is not one of ours, or not whole.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["format"]
    except Exception as error:
        raise ValueError(f"{path} is not a training state ({first_line(error)})") from error
    if found != STATE_FORMAT:
        raise ValueError(f"{path} has format {found}, this program reads {STATE_FORMAT}")
    return dict(state)


def refuse_other_config(saved: dict[str, Any], asked: dict[str, Any], out: Path) -> None:
    """Raise ValueError if a run would go on under other settings than it began with."""
    before, now = _flat(saved), _flat(asked)
    changed = sorted(
        key for key in (before.keys() | now.keys()) - CHANGEABLE if before.get(key) != now.get(key)
    )
    if changed:
        raise ValueError(
            f"{out} holds a run with other settings ({', '.join(changed)}); "
            "give run.out another directory, or the old settings to go on"
        )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat


def _sync_folder(path: Path) -> None:
    """A rename is only safe from a power failure when its folder is on the disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
