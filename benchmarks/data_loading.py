"""How fast training batches are made: images a second for each worker, and what they spend it on.

    python benchmarks/data_loading.py [--data STORE] [--size 416] [--phrases 1] [--workers 0 1 2]
        [--images 960] [--json FILE]

Without --data it draws a store of 640 x 480 JPEGs with textured photos and ragged targets in a
temporary folder. The stages are measured in processor time, which other work on the machine
disturbs little; images a second by the clock, so quote them from an idle machine.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, features
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model.preprocess import letterbox_geometry, letterbox_image, letterbox_mask, letterbox_runs
from model.tokenizer import clip_tokenizer
from training.config import AugmentSection, DataSection
from training.data.dataset import TrainingBatches
from training.data.lmdb_store import (
    ImageRecord,
    PhraseRecord,
    PhraseStore,
    PhraseStoreWriter,
    decode_rle,
    encode_rle,
)
from training.data.run_lengths import mask_changes

_HEIGHT, _WIDTH, _PHOTOS, _PHRASES = 480, 640, 96, 4
_QUALITY = 90
_WORD_LENGTH = 17
_BATCH = 16
_FULL_MASK = "mask, full"


def make_store(path: Path, photos: int = _PHOTOS) -> None:
    """A store of drawn photos: about as many JPEG bytes a pixel as photos of this size have."""
    with PhraseStoreWriter(path, {"made": "benchmark"}) as writer:
        for number in range(photos):
            rng = np.random.default_rng(number)
            phrases = [
                PhraseRecord(
                    phrase=f"the black baseball cap on the left {place}",
                    kind="referring",
                    class_name="cap",
                    rle=encode_rle(_drawn_target(rng)),
                    discriminative=False,
                    swapped=None,
                    swapped_rle=None,
                    group=place,
                )
                for place in range(_PHRASES)
            ]
            image = ImageRecord(f"{number}", "train", "drawn", _HEIGHT, _WIDTH, _PHRASES)
            writer.add([(image, _drawn_photo(rng), phrases)], {})
        writer.finish([f"{number}" for number in range(photos)], {})


def _drawn_photo(rng: np.random.Generator) -> bytes:
    """Smooth colours under a fine texture in all three channels, as JPEG."""
    size = (_WIDTH, _HEIGHT)
    colours = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8))
    smooth = np.asarray(colours.resize(size, Image.Resampling.BICUBIC), dtype=np.float32)
    noise = Image.fromarray(rng.integers(0, 256, (_HEIGHT, _WIDTH, 3), dtype=np.uint8))
    texture = np.asarray(noise.filter(ImageFilter.GaussianBlur(1)), dtype=np.float32) - 128
    buffer = io.BytesIO()
    photo = Image.fromarray(np.clip(smooth + texture, 0, 255).astype(np.uint8))
    photo.save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _drawn_target(rng: np.random.Generator) -> NDArray[np.bool_]:
    """Three ragged polygons of 24 corners."""
    canvas = Image.new("1", (_WIDTH, _HEIGHT))
    for _ in range(3):
        centre = rng.uniform((80, 80), (_WIDTH - 80, _HEIGHT - 80))
        angles, radii = np.sort(rng.uniform(0, 2 * np.pi, 24)), rng.uniform(30, 110, (24, 1))
        corners = centre + radii * np.stack([np.cos(angles), np.sin(angles)], axis=1)
        ImageDraw.Draw(canvas).polygon([(float(x), float(y)) for x, y in corners], fill=1)
    return np.asarray(canvas)


def stage_milliseconds(store: PhraseStore, size: int, phrases: int) -> dict[str, float]:
    """Median processor milliseconds an image of each stage, in this process.

    "mask" is what training does, from the run lengths; "mask, full" decodes the mask first, as
    flipped and cropped targets need it, and is no part of the sum.
    """
    ids = store.image_ids("train")[:_PHOTOS]
    for image_id in ids[:4]:
        _timed_stages(store, image_id, size, phrases)
    samples = [_timed_stages(store, image_id, size, phrases) for image_id in ids]
    return {name: statistics.median(sample[name] for sample in samples) for name in samples[0]}


def _timed_stages(store: PhraseStore, image_id: str, size: int, phrases: int) -> dict[str, float]:
    records = store.phrases(image_id)[:phrases]
    texts = [record.phrase for record in records]
    photo, tokenizer = store.photo(image_id), clip_tokenizer()
    geometry = letterbox_geometry(photo.shape[0], photo.shape[1], size)
    cells = size // 4
    stages: dict[str, Callable[[], Any]] = {
        "records": lambda: store.phrases(image_id),
        "decode": lambda: store.photo(image_id),
        "letterbox": lambda: letterbox_image(photo, size),
        "mask": lambda: [
            letterbox_runs(mask_changes(record.rle), geometry, cells) for record in records
        ],
        "tokenise": lambda: tokenizer.encode(texts, _WORD_LENGTH),
        _FULL_MASK: lambda: [
            letterbox_mask(decode_rle(record.rle), geometry, cells) for record in records
        ],
    }
    spent = {}
    for name, stage in stages.items():
        start = time.process_time()
        stage()
        spent[name] = 1000 * (time.process_time() - start)
    return spent


def images_per_second(
    store: PhraseStore, size: int, phrases: int, workers: int, images: int
) -> tuple[float, float]:
    """Whole batches through a loader as the trainer uses it; the first ones do not count.

    Returns:
        Images a second by the clock, and for each second of this process' processor time (only
        without workers: theirs is not seen from here).
    """
    data = DataSection(
        store=str(store.path),
        images_per_batch=_BATCH,
        phrases_per_image=phrases,
        workers=workers,
        augment=AugmentSection(),
    )
    warm_up = 1 + 2 * workers
    batches = TrainingBatches(
        store,
        clip_tokenizer(),
        data,
        image_size=size,
        word_length=_WORD_LENGTH,
        steps=warm_up + -(-images // _BATCH),
        seed=0,
    )
    loader = DataLoader(batches, batch_size=None, num_workers=workers)
    start, count = (0.0, 0.0), 0
    for number, batch in enumerate(loader, 1):
        count += len(batch.images)
        if number == warm_up:
            start, count = (time.perf_counter(), time.process_time()), 0
    return count / (time.perf_counter() - start[0]), count / (time.process_time() - start[1])


def measure(store: PhraseStore, options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed and written."""
    ids = store.image_ids("train")[:_PHOTOS]
    stages = stage_milliseconds(store, options.size, options.phrases)
    full_mask = stages.pop(_FULL_MASK)
    total = sum(stages.values())
    size, phrases, images = options.size, options.phrases, options.images
    _, per_core = images_per_second(store, size, phrases, 0, images)
    rates = {
        workers: images_per_second(store, size, phrases, workers, images)[0]
        for workers in options.workers
    }
    return {
        "data": "drawn" if options.data is None else str(options.data),
        "image_size": options.size,
        "phrases_per_image": options.phrases,
        "kilobytes_per_photo": statistics.mean(len(store.jpeg(key)) for key in ids) / 1024,
        "megapixels_per_photo": statistics.mean(
            record.height * record.width / 1e6 for record in map(store.image, ids)
        ),
        "machine": _machine(),
        "milliseconds": stages,
        "shares": {name: value / total for name, value in stages.items()},
        "full_mask_milliseconds": full_mask,
        "images_per_processor_second": per_core,
        "images_per_second": rates,
        "images_per_second_per_worker": {
            workers: rate / max(1, workers) for workers, rate in rates.items()
        },
    }


def _machine() -> dict[str, Any]:
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "pillow": PIL.__version__,
        "libjpeg_turbo": features.version("libjpeg_turbo"),
    }


def _processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _table(result: dict[str, Any]) -> str:
    machine = result["machine"]
    lines = [
        f"{result['phrases_per_image']} phrases an image at {result['image_size']} px from photos "
        f"of {result['megapixels_per_photo']:.2f} megapixels, "
        f"{result['kilobytes_per_photo']:.0f} KB; {machine['processor']}, {machine['cores']} "
        f"cores, Pillow {machine['pillow']}, torch {machine['torch']}",
        "",
        "| stage | median ms of a core | share |",
        "|---|--:|--:|",
    ]
    for name, value in result["milliseconds"].items():
        lines.append(f"| {name} | {value:.2f} | {result['shares'][name]:.0%} |")
    lines.append(f"| ({_FULL_MASK}) | {result['full_mask_milliseconds']:.2f} | |")
    lines += [
        "",
        f"{result['images_per_processor_second']:.0f} images for each second of a core",
        "",
    ]
    lines += ["| workers | images/s | for each worker |", "|--:|--:|--:|"]
    for workers, rate in result["images_per_second"].items():
        each = result["images_per_second_per_worker"][workers]
        lines.append(f"| {workers} | {rate:.0f} | {each:.0f} |")
    return "\n".join(lines)


@contextmanager
def _store(path: Path | None) -> Iterator[PhraseStore]:
    if path is not None:
        yield PhraseStore(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "phrases.lmdb"
        make_store(drawn)
        yield PhraseStore(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="a store that `training prepare` wrote")
    parser.add_argument("--size", type=int, default=416)
    parser.add_argument("--phrases", type=int, default=1)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--images", type=int, default=960, help="for each number of workers")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with _store(options.data) as store:
        result = measure(store, options)
    print(_table(result))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
