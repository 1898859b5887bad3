"""Networks with everything their own but size, and what is asked of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from model.config import SegVLMConfig, preset_config
from model.segvlm import SegVLM, build_segvlm

SWITCHES = ("deformable", "se", "residual")


def small(preset: str, **overrides: Any) -> SegVLMConfig:
    """`preset` with everything its own but depth and, for CLIP, widths; 64 pixels."""
    if preset == "segvlm-lite":
        return preset_config(preset, image_size=64, **overrides)
    sizes: dict[str, Any] = {
        "image_encoder": "clip-rn50",
        "image_size": 64,
        "text_width": 64,
        "text_embedding_width": 64,
        "text_layers": 2,
        "state_width": 32,
        "neck_widths": (32, 64, 64),
        "decoder_layers": 2,
        "decoder_ffn": 64,
        "projector_width": 64,
        "kernel_width": 16,
    }
    return preset_config(preset, **sizes | overrides)


def on_meta(config: SegVLMConfig) -> SegVLM:
    """Shapes without numbers, which takes no time at any size."""
    with torch.device("meta"):
        return build_segvlm(config).eval()


def inputs(batch: int, size: int = 64, length: int = 17) -> tuple[Tensor, Tensor]:
    """Noise images and expressions of one word and more, so that every row has its own padding."""
    g = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, generator=g)
    tokens = torch.zeros(batch, length, dtype=torch.int64)
    for row in range(batch):
        words = 1 + 2 * row
        ids = torch.randint(1, 49406, (words,), generator=g).tolist()
        tokens[row, : words + 2] = torch.tensor([49406, *ids, 49407])
    return image, tokens


def assert_same(answer: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the largest magnitude."""
    assert answer.shape == expected.shape
    assert (answer - expected).abs().max() <= tolerance * expected.abs().max()


def equal_states(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
