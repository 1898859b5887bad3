"""python -m training import-weights: CLIP, CRIS, ImageNet or a bundle -> a checkpoint."""

from __future__ import annotations

import argparse
from pathlib import Path

from model.config import PRESETS

from . import Commands
from .checkpoint_source import add_selection_bias


def add(commands: Commands) -> None:
    """Declare the command."""
    weights = commands.add_parser(
        "import-weights", help="CLIP, CRIS, ImageNet or a bundle -> a checkpoint"
    )
    weights.add_argument("--preset", choices=sorted(PRESETS), help="of weights from elsewhere")
    weights.add_argument(
        "--from", dest="source", required=True, help="file, CLIP name, imagenet, or a bundle"
    )
    weights.add_argument(
        "--data", type=Path, help="for a bundle: the store that the checkpoint is to be trained on"
    )
    add_selection_bias(weights)
    weights.add_argument("--out", type=Path, required=True, help="safetensors to write")
    weights.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    if Path(options.source).is_dir():
        _import_bundle(options)
        return
    from training.import_weights import import_weights

    if options.preset is None:
        raise ValueError("--preset is needed unless --from is a bundle; give one of its choices")
    for name, value in (("--data", options.data), ("--selection-bias", options.selection_bias)):
        if value is not None:
            raise ValueError(f"{name} is for a bundle; leave it out")
    print(import_weights(options.preset, options.source, options.out))


def _import_bundle(options: argparse.Namespace) -> None:
    from training.bundle_import import import_bundle

    if options.preset is not None:
        raise ValueError("--preset is not for a bundle, which names its own; leave it out")
    if options.data is None:
        raise ValueError(
            "a bundle's batch norms are measured on what is to be trained on; give --data STORE"
        )
    source, bias = Path(options.source), options.selection_bias or 0.0
    measured = import_bundle(source, options.data, options.out, selection_bias=bias)
    print(f"{source} -> {options.out}: {len(measured)} batch norms measured on {options.data}")
