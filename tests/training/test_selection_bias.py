"""What `--selection-bias` adds: to every logit of the selection, and to nothing else."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

from model.checkpoint import save
from model.config import preset_config
from model.segvlm import Decoded, SegVLM
from tests.lively import lively
from training.commands.checkpoint_source import open_checkpoint
from training.selection_bias import shift_selection


def _network(*, selection: bool) -> SegVLM:
    return lively(preset_config("segvlm-lite", image_size=64, selection=selection))


def _parts(network: SegVLM) -> Decoded:
    generator = np.random.default_rng(0)
    image = torch.from_numpy(generator.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8))
    tokens = torch.zeros((2, network.config.word_length), dtype=torch.int64)
    tokens[:, :3] = torch.tensor([49406, 1929, 49407])
    with torch.inference_mode():
        return network.decode_parts(*network.encode_image(image), *network.encode_text(tokens))


def test_it_moves_the_selection_and_nothing_else() -> None:
    """The class map stays, every selection logit rises by the bias, the answer follows."""
    network = _network(selection=True)
    before, after = _parts(network), _parts(shift_selection(network, 0.75))
    assert before.selection is not None and before.class_logits is not None
    torch.testing.assert_close(after.selection, before.selection + 0.75)
    torch.testing.assert_close(after.class_logits, before.class_logits)
    assert (after.logits > before.logits).all()


def test_a_checkpoint_is_opened_with_it(tmp_path: Path) -> None:
    """The option of the commands; without it the network is as it was saved."""
    network = _network(selection=True)
    save(network, tmp_path / "network.safetensors")
    opened = {
        bias: open_checkpoint(
            Namespace(
                checkpoint=tmp_path / "network.safetensors",
                selection_bias=bias,
                optimal_threshold=None,
            )
        ).eval()
        for bias in (None, -0.5)
    }
    plain, lower = _parts(opened[None]).selection, _parts(opened[-0.5]).selection
    assert plain is not None
    torch.testing.assert_close(plain, _parts(network).selection)
    torch.testing.assert_close(lower, plain - 0.5)


def test_who_has_no_selection_is_told() -> None:
    with pytest.raises(ValueError, match="no selection"):
        shift_selection(_network(selection=False), 0.5)
