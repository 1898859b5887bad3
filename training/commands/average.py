"""python -m training average: the mean of the weights of several checkpoints."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "average",
        help="the mean of the weights of checkpoints",
        description="Average the weights of checkpoints that were fine-tuned from one another.",
    )
    parser.add_argument("checkpoints", nargs="+", type=Path, metavar="CHECKPOINT")
    parser.add_argument(
        "--shares", nargs="+", type=float, metavar="SHARE", help="of each; default: equal"
    )
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint to write")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from model.checkpoint import load, save
    from training.averaging import average

    count = len(options.checkpoints)
    shares = options.shares or [1 / count] * count
    if options.out.exists():
        raise ValueError(f"{options.out} exists; choose another name")
    save(average([load(path) for path in options.checkpoints], shares), options.out)
    print(f"{options.out}: the mean of {count} checkpoints")
