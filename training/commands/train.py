"""python -m training train: train, or go on with a run that was stopped."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    train = commands.add_parser("train", help="train, or go on with a run that was stopped")
    train.add_argument("--config", type=Path, required=True, help="YAML, see training/configs/")
    train.add_argument("overrides", nargs="*", metavar="section.key=value")
    train.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from training.config import load_config
    from training.setup import build_trainer

    build_trainer(load_config(options.config, options.overrides)).run()
