"""Exports of `lively_lite`, and what is asked of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from model.bundle import BundleConfig
from model.segvlm import SegVLM
from model.tokenizer import clip_tokenizer
from training.export import Artifacts, Description, export_bundle

GRAPHS = ("image_encoder", "text_encoder", "mask_decoder")
PHRASES = [
    "the dog",
    "a man in a red shirt on the left",
    "zebra",
    "left",
    "second cup from the left",
]

ONNX_ONLY = Artifacts(torchscript=False, safetensors=False)
DESCRIPTION = Description("test-model", "1", 0.35, {"data": "none"}, {"miou": 0.5})


def write(
    model: SegVLM, out: Path, version: str = "1", artifacts: Artifacts = ONNX_ONLY, **options: Any
) -> BundleConfig:
    description = replace(DESCRIPTION, version=version)
    return export_bundle(model, clip_tokenizer(), out, description, artifacts, **options)


def real_inputs(model: SegVLM) -> tuple[np.ndarray, np.ndarray]:
    size, count = model.config.image_size, len(PHRASES)
    ramp = np.linspace(0, 255, size, dtype=np.uint8)
    images = np.stack([np.roll(ramp, 9 * i)[None, :, None].repeat(size, 0) for i in range(count)])
    tokens = clip_tokenizer().encode(PHRASES, model.config.word_length).tokens
    return images.repeat(3, -1), tokens


def copies(graphs: Path) -> Callable[[SegVLM, Path], None]:
    """An `export_graphs` that copies."""

    def copy_graphs(_: SegVLM, directory: Path) -> None:
        for name in GRAPHS:
            shutil.copy(graphs / f"{name}.onnx", directory)

    return copy_graphs
