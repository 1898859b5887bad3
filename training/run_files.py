"""The files of a run: whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state so that a kill at any moment leaves the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state; holds tensors and plain values only, so nothing in it is executed.

    Raises:
        ValueError: if the file is not one of ours.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        state["step"]
    except Exception as error:
        raise ValueError(
            f"{path} is not a training state ({error}); delete it to start the run afresh"
        ) from error
    return dict(state)


def refuse_other_config(saved: dict[str, Any], asked: dict[str, Any], out: Path) -> None:
    """Raise ValueError if a run would go on under other settings than it began with."""
    before, now = _flat(saved), _flat(asked)
    changed = sorted(
        key
        for key in before.keys() | now.keys()
        if key != "run.out" and before.get(key) != now.get(key)
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
            flat[prefix + key] = value
    return flat
