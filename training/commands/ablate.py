"""python -m training ablate: train and score the four rows of the paper's Table 2."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    ablate = commands.add_parser("ablate", help="train and score the rows of the paper's Table 2")
    ablate.add_argument("--config", type=Path, required=True, help="the whole SegVLM's YAML")
    ablate.add_argument("--out", type=Path, required=True, help="directory of all its runs")
    ablate.add_argument("--seeds", type=int, default=1, help="seeds for each row (default: 1)")
    ablate.add_argument("--split", default="", help="split to score; default: the validation split")
    ablate.add_argument("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    ablate.add_argument(
        "--launcher", default="", help='e.g. "torchrun --nproc_per_node 8"; default: one process'
    )
    ablate.add_argument("overrides", nargs="*", metavar="section.key=value")
    ablate.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from training.ablation import run_ablation, table
    from training.config import load_config

    runs = run_ablation(
        load_config(options.config, options.overrides),
        options.out,
        seeds=options.seeds,
        split=options.split,
        launcher=options.launcher,
        jobs=options.jobs,
    )
    print(table(runs))
