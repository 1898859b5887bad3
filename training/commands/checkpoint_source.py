"""The network of `--checkpoint`, as `evaluate` and `export` open it."""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from model.segvlm import SegVLM

PAPER_THRESHOLD = 0.35
"""Of CRIS, the paper's baseline; what a checkpoint is scored with unless it is told otherwise."""


def add_selection_bias(parser: argparse._ActionsContainer) -> None:
    """Declare `--selection-bias`."""
    parser.add_argument(
        "--selection-bias",
        type=float,
        metavar="LOGIT",
        help="added to the selection of a checkpoint that has one: above 0 lets more through",
    )


def add_answer_options(parser: argparse._ActionsContainer) -> None:
    """Declare what is set of a checkpoint's answers after training."""
    add_selection_bias(parser)
    parser.add_argument(
        "--optimal-threshold",
        type=float,
        nargs=2,
        metavar=("FACTOR", "LEAST_IOU"),
        help="answer each expression at FACTOR times the threshold that promises the most IoU (1 "
        "for calibrated probabilities), and with nothing where that IoU is below LEAST_IOU",
    )


def add_image_size(parser: argparse._ActionsContainer) -> None:
    """Declare `--image-size`."""
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="side of the input, a multiple of 32: another than it was trained with",
    )


def set_image_size(network: SegVLM, side: int) -> None:
    """Let `network` read squares of `side` pixels; ValueError unless 32 divides it."""
    network.config = replace(network.config, image_size=side)


def refuse_answer_options(options: argparse.Namespace) -> None:
    """Of a bundle they are in the graphs. Raises ValueError if one was given."""
    for name in ("selection_bias", "optimal_threshold"):
        if getattr(options, name) is not None:
            raise ValueError(
                f"--{name.replace('_', '-')} is for a checkpoint, a bundle has its own; leave it "
                "out"
            )


def open_checkpoint(options: argparse.Namespace) -> SegVLM:
    """Raises ValueError and what `model.checkpoint.load` does."""
    from model.checkpoint import load
    from training.optimal_threshold import set_optimal_threshold
    from training.selection_bias import shift_selection

    network = load(options.checkpoint)
    if options.selection_bias is not None:
        shift_selection(network, options.selection_bias)
    if options.optimal_threshold is not None:
        set_optimal_threshold(network, *options.optimal_threshold)
    return network


def usual_threshold(network: SegVLM) -> float:
    """The threshold of a checkpoint whose command names none."""
    from training.optimal_threshold import HALF

    return PAPER_THRESHOLD if network.optimal_threshold is None else HALF
