"""What bundles are made of in tests, and what one does to them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from model.bundle import CONFIG_FILE, BundleConfig
from model.probe import Probe

CONFIG = BundleConfig(
    name="segvlm-test",
    version="1.2.3",
    preset="segvlm-lite",
    image_size=320,
    word_length=17,
    threshold=0.35,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    training={"data": "twelve photos of cats — «chats»", "steps": 3},
    scores={"mIoU": 0.5, "kinds": {"class": 0.6}, "checked": True, "note": None},
    parity={"image_encoder.onnx": 2e-6},
)


COST = {
    "mean_iou_fp32": 0.5,
    "mean_iou": 0.498,
    "iou_loss": 0.002,
    "mask_iou": 0.99,
    "phrases": 2000,
    "data": {"maker": "instances"},
}


def make_probe(side: int = 320, length: int = 17, cells: int = 80) -> Probe:
    return Probe(
        np.zeros((1, side, side, 3), np.uint8),
        np.ones((1, length), np.int64),
        np.linspace(-1, 1, cells * cells, dtype=np.float32).reshape(1, cells, cells),
    )


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change config.json as somebody with an editor would."""
    values = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
    change(values)
    (path / CONFIG_FILE).write_text(json.dumps(values), encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
