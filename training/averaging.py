"""The mean of the weights of networks fine-tuned from one another (Wortsman et al., 2022).

Training goes on to fit the photos at hand after it has stopped to get better on others; weights
between an earlier and a later state are often better on those than either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from model.segvlm import SegVLM


def average(networks: Sequence[SegVLM], shares: Sequence[float]) -> SegVLM:
    """The weighted mean of floating point weights and statistics, in the first network, returned.

    What counts (a batch norm's number of batches) stays the first's, and so does the side of the
    input, which changes no weight; a threshold that was set after training is left out.

    Raises ValueError for networks that are otherwise configured, and shares that are not one for
    each, not above 0, or do not sum to 1.
    """
    if len(networks) < 2 or len(shares) != len(networks):
        raise ValueError(
            f"{len(networks)} checkpoints and {len(shares)} shares; give at least two, and a share "
            "for each"
        )
    if min(shares) <= 0 or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
        raise ValueError(f"shares must be above 0 and sum to 1, not {list(shares)}")
    first = networks[0]
    side = first.config.image_size
    plain, *configs = (
        replace(network.config, image_size=side, optimal_threshold=False) for network in networks
    )
    if any(config != plain for config in configs):
        raise ValueError("the checkpoints have different configurations; average states of one run")
    first.config, first.optimal_threshold = plain, None
    states = [network.state_dict() for network in networks]
    with torch.no_grad():
        for name, tensor in states[0].items():
            if tensor.is_floating_point():
                parts = (share * state[name] for share, state in zip(shares, states, strict=True))
                tensor.copy_(sum(parts, torch.zeros_like(tensor)))
    return first
