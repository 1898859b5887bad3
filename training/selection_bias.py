"""How easily a selection lets things of the class through, set after training.

The losses want a selection that is sure; where it is in doubt, the product with the class map falls
below the threshold and the mask has holes. A constant on its logits moves that point alone and
leaves the class map's own threshold where it is good.
"""

from __future__ import annotations

import torch

from model.segvlm import SegVLM


def shift_selection(network: SegVLM, by: float) -> SegVLM:
    """Add `by` to every selection logit of `network`, in its weights, and return it.

    Ranks and comparisons stay as they are: what is added comes after them. Raises ValueError for a
    network without a selection.
    """
    if network.selection is None:
        raise ValueError(
            "this network has no selection (model.overrides: {selection: true}) that "
            "--selection-bias could shift; leave it out"
        )
    with torch.no_grad():
        network.selection.compared.outer.bias[-1] += by
    return network
