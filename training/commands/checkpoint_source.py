"""The network of `--checkpoint`, as `evaluate` and `export` open it."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.segvlm import SegVLM


def add_selection_bias(parser: argparse._ActionsContainer) -> None:
    """Declare `--selection-bias`."""
    parser.add_argument(
        "--selection-bias",
        type=float,
        metavar="LOGIT",
        help="added to the selection of a checkpoint that has one: above 0 lets more through",
    )


def refuse_selection_bias(options: argparse.Namespace) -> None:
    """Of a bundle it is in the graphs. Raises ValueError if it was given."""
    if options.selection_bias is not None:
        raise ValueError("--selection-bias is for a checkpoint, a bundle has its own; leave it out")


def open_checkpoint(options: argparse.Namespace) -> SegVLM:
    """Raises ValueError and what `model.checkpoint.load` does."""
    from model.checkpoint import load
    from training.selection_bias import shift_selection

    network = load(options.checkpoint)
    if options.selection_bias is not None:
        shift_selection(network, options.selection_bias)
    return network
