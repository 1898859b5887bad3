"""The directory of a run: checkpoints that are whole or not at all, and a lock.

config.yaml               what was asked for
log.jsonl, tensorboard/   see `run_log`
checkpoints/00000200.pt   everything that step 201 depends on; the last few are kept
best.safetensors          the weights with the best validation mean IoU
last.safetensors          the weights at the end, once the run has ended
run.json                  how it ended
samples/                  see `run_pictures`
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError

from model.checkpoint import save
from model.segvlm import SegVLM

from .data.dataset import Batch
from .failures import TrainingError, first_line

STATE_FORMAT = 3
_LEFT_BY_A_KILL = ("*.partial", ".*.partial.*", "checkpoints/*.partial")
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
                # Not flock: the data workers of a killed run would hold it for some seconds more.
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                raise ValueError(
                    f"another process trains in {self.out}; wait until it ends, or give run.out "
                    "another directory"
                ) from None
            for pattern in _LEFT_BY_A_KILL:
                for path in self.out.glob(pattern):
                    path.unlink()
            yield

    @property
    def ended(self) -> bool:
        """Whether the run came to its end and everything was written."""
        return (self.out / "run.json").is_file()

    def write_config(self, settings: dict[str, Any]) -> None:
        """The settings of a new run, for a person and for `report`."""
        text = yaml.safe_dump(settings, sort_keys=False)
        (self.out / "config.yaml").write_text(text, encoding="utf-8")

    def save_state(self, state: dict[str, Any]) -> None:
        """Keep a state, then drop those that are too old.

        Raises:
            TrainingError: if the disk does not take it; the older states are untouched.
        """
        path = self._path(state["step"])
        with _written(path) as partial, partial.open("wb") as file:
            torch.save({"format": STATE_FORMAT, **state}, file)
        states = self._states()
        newest = states.index(path)  # what seems newer could not be read when the run went on
        for other in (*states[:newest], *states[newest + self.keep :]):
            other.unlink()

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

    def state_of(self, step: int) -> dict[str, Any]:
        """The state of a step that another process has read.

        Raises:
            ValueError: if it is not there or not whole.
        """
        path = self._path(step)
        if not path.is_file():
            raise ValueError(
                f"{path} is there for the main process but not here; give run.out a directory "
                "that all machines of the run share"
            )
        return load_state(path)

    def save_broken(self, batches: Sequence[Batch], rank: int) -> Path:
        """Keep batches that broke a step, each as a dictionary; answers where those of all are."""
        if batches:
            self.out.mkdir(parents=True, exist_ok=True)
            kept = [batch._asdict() for batch in batches]
            torch.save(kept, self.out / f"non_finite_batch_rank{rank}.pt")
        return self.out / "non_finite_batch_rank*.pt"

    def save_weights(self, model: SegVLM, name: str) -> None:
        """Write `name`.safetensors: the network alone, for `evaluate` and `export`."""
        with _written(self.out / f"{name}.safetensors") as partial:
            save(model, partial)

    def write_end(self, summary: dict[str, Any]) -> None:
        """run.json, whose presence says that the run has ended."""
        with _written(self.out / "run.json") as partial:
            partial.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")

    def _path(self, step: int) -> Path:
        return self.checkpoints / f"{step:08d}.pt"

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


@contextmanager
def _written(path: Path) -> Iterator[Path]:
    """A file to fill that takes the place of `path` once it is whole and on the disk.

    Raises:
        TrainingError: if the disk does not take it; `path` stays what it was.
    """
    partial = path.with_name(f"{path.name}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors wrap OSError
        partial.unlink(missing_ok=True)
        raise TrainingError(
            f"{path} could not be written ({first_line(error)}); make room and give the same "
            "command again, it goes on from the last checkpoint that is whole"
        ) from error


def _sync_folder(path: Path) -> None:
    """A rename is only safe from a power failure when its folder is on the disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
