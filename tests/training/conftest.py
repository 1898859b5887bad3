"""A miniature COCO-format set, drawn here, and the phrase store made from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageDraw

from model.checkpoint import save
from model.config import preset_config
from model.segvlm import build_segvlm
from model.tokenizer import clip_tokenizer
from tests.training.drawn_coco import DrawnSet
from training.ablation import plan
from training.config import config_from_dict
from training.prepare import prepare_instances
from training.setup import build_trainer

_COLOURS = {"red": (200, 30, 30), "blue": (30, 40, 200), "green": (30, 160, 50)}


@pytest.fixture(scope="session")
def tiny_annotations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve photos of coloured cups and books on noise, nine to train on and three to validate."""
    made = DrawnSet(tmp_path_factory.mktemp("tiny-coco"), ("cup", "book"))
    rng = np.random.default_rng(0)
    for number in range(12):
        width, height = (96, 64) if number % 2 else (64, 96)
        photo = Image.fromarray(rng.integers(90, 160, (height, width, 3), dtype=np.uint8))
        draw = ImageDraw.Draw(photo)
        for place, category in enumerate((1, 1, 2)):
            colour = list(_COLOURS)[(number + place) % 3]
            left, top = 4 + place * (width // 3), 8 + int(rng.integers(0, height // 2))
            box = (left, top, left + width // 3 - 8, top + 20)
            draw.rectangle(box, fill=_COLOURS[colour])
            made.annotate(category, *box)
        made.add(photo, "val" if number >= 9 else "train")
    return made.write()


@pytest.fixture(scope="session")
def tiny_store(tiny_annotations: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The phrase store of `tiny_annotations`."""
    out = tmp_path_factory.mktemp("tiny-store") / "phrases.lmdb"
    prepare_instances(tiny_annotations, tiny_annotations.parent, out, show_progress=False)
    return out


@pytest.fixture
def tiny_run(tiny_store: Path, tmp_path: Path) -> dict[str, Any]:
    """The configuration of a run of six steps with a network of a few hundred thousand weights."""
    return tiny_settings(tiny_store, tmp_path / "run")


@pytest.fixture(scope="session")
def whole_tiny_run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the run of `tiny_run` leaves where nothing interrupts it; to be read only."""
    out = tmp_path_factory.mktemp("whole-tiny-run") / "run"
    build_trainer(config_from_dict(tiny_settings(tiny_store, out))).run()
    return out


@pytest.fixture(scope="session", name="tiny_settings")
def tiny_settings_of() -> Callable[[Path, Path], dict[str, Any]]:
    """Of a store and a directory, the configuration that `tiny_run` is."""
    return tiny_settings


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tiny networks gain nothing from threads, and where cores are busy threads wait for others."""
    torch.set_num_threads(1)


def tiny_settings(store: Path, out: Path) -> dict[str, Any]:
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
            "store": str(store),
            "images_per_batch": 2,
            "phrases_per_image": 3,
            "augment": {"flip": 0.5, "crop": 0.5, "jitter": 0.2},
        },
        "optim": {"steps": 6, "lr": 0.001, "optimizer": "adamw", "ema_decay": 0.9},
        "run": {"out": str(out), "log_every": 1, "save_every": 1, "validate_every": 3},
    }


def made_scores(mean_iou: float, **changes: Any) -> dict[str, Any]:
    """What `evaluate --json` writes, made up: precision falls from `mean_iou` evenly."""
    precision = {f"0.{tenth}": mean_iou * (10 - tenth) / 5 for tenth in (5, 6, 7, 8, 9)}
    overall = {"num": 40, "mean_iou": mean_iou, "cum_iou": mean_iou / 2, "precision": precision}
    return {
        "split": "val",
        "threshold": 0.4,
        "num_images": 3,
        "num_phrases": 40,
        "all": overall,
        "kinds": {"class": overall},
        "subsets": {},
        "empty_share": 0.25,
        "probes": None,
        "data": {"maker": "instances", "seed": 0},
        **changes,
    }


@pytest.fixture
def made_ablation(finished_ablation: Path, tmp_path: Path) -> Path:
    """A copy of `finished_ablation` to change."""
    return Path(shutil.copytree(finished_ablation, tmp_path / "ablation"))


@pytest.fixture(scope="session")
def finished_ablation(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ablation's directory of two seeds as `ablate` leaves it, but with made-up scores.

    Mean IoU in per cent, seeds 0 and 1: baseline 20 and 22, raf 30 and 34, deformable-residual 29
    and 29, se 40 and 42. No weights.
    """
    means = {
        "baseline": (0.20, 0.22),
        "raf": (0.30, 0.34),
        "deformable-residual": (0.29, 0.29),
        "se": (0.40, 0.42),
    }
    out = tmp_path_factory.mktemp("ablation")
    for run in plan(config_from_dict(tiny_settings(tiny_store, out)), 2, out):
        run.out.mkdir(parents=True)
        config = yaml.safe_dump(run.config.to_dict(), sort_keys=False)
        (run.out / "config.yaml").write_text(config, encoding="utf-8")
        scores = made_scores(means[run.row.name][run.seed])
        (run.out / "scores.json").write_text(json.dumps(scores), encoding="utf-8")
        (run.out / "run.json").write_text('{"finished": true, "step": 6}', encoding="utf-8")
        rows: list[dict[str, Any]] = [
            {"event": "train", "step": step, "loss": 2 / step, "bce": 1 / step}
            for step in range(1, 7)
        ]
        rows.append({"event": "validation", "step": 6, **scores})
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (run.out / "log.jsonl").write_text(text, encoding="utf-8")
    return out


@pytest.fixture
def random_checkpoint(tiny_run: dict[str, Any], tmp_path: Path) -> Path:
    """The network of `tiny_run` with random weights whose masks are neither empty nor full."""
    torch.manual_seed(0)
    section = tiny_run["model"]
    model = build_segvlm(preset_config(section["preset"], **section["overrides"])).eval()
    side, length = model.config.image_size, model.config.word_length
    tokens = torch.from_numpy(clip_tokenizer().encode(["a dog"], length).tokens)
    last = model.projector.dynamic.kernel
    with torch.no_grad():
        logits = model(torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8), tokens)
        for parameter in last.parameters():
            parameter.div_(logits.std())
        last.bias[-1] -= logits.mean() / logits.std()
    path = tmp_path / "random.safetensors"
    save(model, path)
    return path
