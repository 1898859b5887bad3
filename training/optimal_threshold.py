"""Each answer its own threshold, set after training; see `model.optimal_threshold`."""

from __future__ import annotations

from dataclasses import replace

from model.optimal_threshold import OptimalThreshold
from model.segvlm import SegVLM

HALF = 0.5
"""The threshold that such a network is asked with."""


def set_optimal_threshold(network: SegVLM, factor: float, least_iou: float) -> SegVLM:
    """Let `network` answer each expression at its own threshold, and return it.

    Replaces what the network had of it. The training loss never sees it. Raises ValueError for
    values that `OptimalThreshold` does not take.
    """
    network.optimal_threshold = OptimalThreshold(factor, least_iou).to(network.mean.device)
    network.config = replace(network.config, optimal_threshold=True)
    return network
