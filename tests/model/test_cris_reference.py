"""Our CRIS answers what the official model answered, number for number."""

from __future__ import annotations

import json
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model.checkpoint import from_cris

PARAMETERS = {"RN50": 146_849_122, "RN101": 161_251_682}


def made_weight(name: str, shape: list[int]) -> Tensor:
    """The documented recipe of the reference: a generator seeded by the name's CRC-32."""
    g = np.random.default_rng(zlib.crc32(name.encode()))
    leaf = name.rsplit(".", 1)[-1]
    if leaf == "num_batches_tracked":
        return torch.tensor(0)
    if leaf == "running_var":
        value = g.uniform(0.5, 1.5, shape)
    elif leaf == "running_mean":
        value = 0.1 * g.standard_normal(shape)
    elif len(shape) == 1:
        value = g.uniform(0.5, 1.5, shape) if leaf == "weight" else 0.1 * g.standard_normal(shape)
    elif "positional_embedding" in name or "token_embedding" in name:
        value = 0.05 * g.standard_normal(shape)
    else:
        value = g.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


@pytest.fixture(scope="session")
def cris_dir(shared_dir: Path) -> Path:
    path = shared_dir / "data" / "cris"
    if not path.is_dir():
        pytest.skip(f"{path} is missing: no reference of the official CRIS to compare with")
    return path


@pytest.mark.parametrize("backbone", ["RN50", "RN101"])
def test_logits_equal_the_official_models(cris_dir: Path, backbone: str) -> None:
    shapes = json.loads((cris_dir / "state_dict_shapes.json").read_text())[backbone]
    state_dict = {f"module.{name}": made_weight(name, shape) for name, shape in shapes.items()}
    model, report = from_cris(state_dict, f"cris-{backbone.lower()}")
    assert len(report.loaded) == len(shapes)
    assert report.made_new == report.left_over == ()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[backbone]

    image = np.random.default_rng(0).standard_normal((2, 3, 416, 416)).astype(np.float32)
    with np.load(cris_dir / "reference.npz") as reference:
        tokens, expected = torch.from_numpy(reference["tokens"]), reference[backbone]
    with torch.inference_mode():
        logits = model.forward_normalized(torch.from_numpy(image), tokens.long()).numpy()
    assert logits.shape == expected.shape == (2, 104, 104)
    assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
