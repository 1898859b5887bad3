"""A bundle's network as a checkpoint to train on from."""

from __future__ import annotations

from pathlib import Path

import torch

from model import checkpoint
from model.bundle import Bundle

from .data.lmdb_store import PhraseStore
from .exporting.quantisation import calibration_requests
from .exporting.recovery import network_of
from .norm_statistics import measure_norms
from .selection_bias import shift_selection

_PHOTOS = 128  # to measure batch norms on


def import_bundle(bundle: Path, data: Path, out: Path, *, selection_bias: float = 0.0) -> list[str]:
    """Write the network of `bundle` to `out`, answering as the bundle does, fit to be trained.

    Args:
        data: the store to be trained on; batch norms that the graphs have folded away get their
            statistics from photos of its `train` split.
        out: the safetensors file; overwritten if it exists.
        selection_bias: added to the selection, see `shift_selection`; minus that of the export
            gives the network before it.

    Returns:
        The names of the batch norms that were measured.

    Raises:
        ValueError: if the bundle or the store cannot be read.
        ExportError: if the graphs do not tell all weights, or the store has nothing to train on.
    """
    opened = Bundle.load(bundle)
    network = network_of(opened)
    requests = calibration_requests(PhraseStore(data), opened.tokenizer(), network.config, _PHOTOS)
    measured = measure_norms(
        network,
        (
            (torch.from_numpy(photo).expand(len(tokens), -1, -1, -1), torch.from_numpy(tokens))
            for photo, tokens in requests
        ),
    )
    if selection_bias:
        shift_selection(network, selection_bias)
    checkpoint.save(network, out)
    return measured
