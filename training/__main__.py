"""python -m training COMMAND; `--help` lists the commands."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from .commands import (
    ablate,
    average,
    card,
    evaluate,
    export,
    gallery,
    import_weights,
    prepare,
    preview,
    report,
    seeds,
    train,
)
from .failures import TrainingError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the user's mistakes end with one line and status 2."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, FloatingPointError, TrainingError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description="Train SegVLM.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command in (
        *(prepare, preview, train, average, evaluate, ablate),
        *(report, seeds, gallery, export, card, import_weights),
    ):
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
