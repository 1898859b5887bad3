"""python -m training prepare {instances}: a data set -> a phrase store."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import Commands


def add(commands: Commands) -> None:
    """Declare the command; one data set is one subcommand."""
    prepare = commands.add_parser("prepare", help="a data set -> a phrase store")
    data_sets = prepare.add_subparsers(required=True, metavar="DATA_SET")

    instances = data_sets.add_parser(
        "instances", help="any COCO-format instance file, phrases made from templates"
    )
    instances.add_argument("--annotations", type=Path, required=True, help="COCO-format JSON")
    instances.add_argument(
        "--images", type=Path, help="root of its file names; default: its folder"
    )
    instances.add_argument("--out", type=Path, required=True, help="the store to write")
    instances.add_argument("--seed", type=int, default=0)
    instances.set_defaults(run=_instances)


def _instances(options: argparse.Namespace) -> None:
    from training.prepare import prepare_instances

    images = options.images or options.annotations.parent
    print(prepare_instances(options.annotations, images, options.out, seed=options.seed).text())
