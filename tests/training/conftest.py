"""A miniature COCO-format set, drawn here, and the phrase store made from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from training.prepare import prepare_instances

_COLOURS = {"red": (200, 30, 30), "blue": (30, 40, 200), "green": (30, 160, 50)}


@pytest.fixture(scope="session")
def tiny_annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photos of coloured cups and books on noise, nine to train on and three to validate."""
    folder = tmp_path_factory.mktemp("tiny-coco")
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for number in range(12):
        width, height = (96, 64) if number % 2 else (64, 96)
        photo = Image.fromarray(rng.integers(90, 160, (height, width, 3), dtype=np.uint8))
        draw = ImageDraw.Draw(photo)
        for place, category in enumerate((1, 1, 2)):
            colour = list(_COLOURS)[(number + place) % 3]
            left, top = 4 + place * (width // 3), 8 + int(rng.integers(0, height // 2))
            right, bottom = left + width // 3 - 8, top + 20
            draw.rectangle((left, top, right, bottom), fill=_COLOURS[colour])
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": category,
                    "iscrowd": 0,
                    "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
                    "bbox": [left, top, right - left, bottom - top],
                    "area": (right - left) * (bottom - top),
                }
            )
        name = f"{number}.jpg"
        photo.save(folder / name, quality=95)
        split = "val" if number >= 9 else "train"
        images.append(
            {"id": number, "file_name": name, "width": width, "height": height, "split": split}
        )
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "book"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    path = folder / "annotations.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_store(tiny_annotations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phrase store of `tiny_annotations`."""
    out = tmp_path_factory.mktemp("tiny-store") / "phrases.lmdb"
    prepare_instances(tiny_annotations, tiny_annotations.parent, out, show_progress=False)
    return out


@pytest.fixture
def tiny_run(tiny_store: Path, tmp_path: Path) -> dict[str, Any]:
    """The configuration of a run of six steps with a network of a few hundred thousand weights."""
    small = {
        "image_size": 64,
        "text_layers": 1,
        "text_embedding_width": 8,
        "text_width": 32,
        "text_heads": 2,
        "state_width": 32,
        "neck_widths": [16, 32, 32],
        "decoder_layers": 1,
        "decoder_heads": 2,
        "decoder_ffn": 32,
        "dropout": 0.1,
        "projector_width": 16,
        "kernel_width": 16,
    }
    return {
        "model": {"preset": "segvlm-lite", "overrides": small},
        "data": {
            "store": str(tiny_store),
            "images_per_batch": 2,
            "phrases_per_image": 3,
            "augment": {"flip": 0.5, "crop": 0.5, "jitter": 0.2},
        },
        "optim": {"steps": 6, "lr": 0.001, "optimizer": "adamw", "ema_decay": 0.9},
        "run": {"out": str(tmp_path / "run"), "log_every": 1, "save_every": 1, "validate_every": 3},
    }
