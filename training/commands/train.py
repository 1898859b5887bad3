"""python -m training train: train, or go on with a run that was stopped.

Alone it uses one GPU, or the CPU; under `torchrun` it is one process of several.
"""

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
    from training.distributed import join
    from training.failures import explained
    from training.setup import build_trainer

    config = load_config(options.config, options.overrides)
    processes = join()
    try:
        build_trainer(config, processes).run()
    except (OSError, RuntimeError, ValueError) as error:
        told = explained(error)
        if told is error:
            raise
        raise told from error
    processes.leave()
