"""python -m training import-weights: CLIP, CRIS or ImageNet weights -> a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from model.config import PRESETS

from . import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    weights = commands.add_parser("import-weights", help="CLIP, CRIS or ImageNet -> a checkpoint")
    weights.add_argument("--preset", choices=sorted(PRESETS), required=True)
    weights.add_argument("--from", dest="source", required=True, help="file, CLIP name, imagenet")
    weights.add_argument("--out", type=Path, required=True, help="safetensors to write")
    weights.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from training.import_weights import import_weights

    print(import_weights(options.preset, options.source, options.out))
