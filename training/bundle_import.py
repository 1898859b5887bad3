"""A bundle's network as a checkpoint to train on from."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model import checkpoint
from model.bundle import Bundle
from model.preprocess import letterbox_image
from model.segvlm import SegVLM
from model.tokenizer import clip_tokenizer

from .data.lmdb_store import PhraseStore
from .exporting.recovery import network_of
from .norm_statistics import measure_norms
from .selection_bias import shift_selection

_PHOTOS = 256  # to measure batch norms on
_BATCH = 16


def import_bundle(bundle: Path, data: Path, out: Path, *, selection_bias: float = 0.0) -> list[str]:
    """Write the network of `bundle` to `out`, answering as the bundle does, fit to be trained.

    Args:
        data: the store to be trained on; batch norms that the graphs have folded away get their
            statistics from photos of its `train` split, the same ones every time.
        out: the safetensors file; overwritten if it exists.
        selection_bias: added to the selection, see `shift_selection`; minus that of the export
            gives the network before it.

    Returns:
        The names of the batch norms that were measured.

    Raises:
        ValueError: if the bundle or the store cannot be read, or the store has nothing to train on.
        ExportError: if the graphs do not tell all weights.
    """
    network = network_of(Bundle.load(bundle))
    measured = measure_norms(network, _photos_with_words(PhraseStore(data), network))
    if selection_bias:
        shift_selection(network, selection_bias)
    checkpoint.save(network, out)
    return measured


def _photos_with_words(store: PhraseStore, network: SegVLM) -> Iterator[tuple[Tensor, Tensor]]:
    """Photos drawn from the `train` split, each with one of its phrases."""
    draw = random.Random(0)
    with_phrases = [name for name in store.image_ids("train") if store.phrase_count(name)]
    chosen = draw.sample(with_phrases, min(_PHOTOS, len(with_phrases)))
    config, tokenizer = network.config, clip_tokenizer()
    for start in range(0, len(chosen), _BATCH):
        names = chosen[start : start + _BATCH]
        images = [letterbox_image(store.photo(name), config.image_size)[0] for name in names]
        phrases = [draw.choice(store.phrases(name)).phrase for name in names]
        tokens = tokenizer.encode(phrases, config.word_length).tokens
        yield torch.from_numpy(np.stack(images)), torch.from_numpy(tokens)
