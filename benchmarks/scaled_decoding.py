"""What decoding a large JPEG at a fraction of its size saves, and what the masks lose by it.

    python -m benchmarks.scaled_decoding --data STORE [--photos 200] [--sides 640 960 1280]
        [--oversampling 1 1.25 1.5 2] [--json FILE]

The service leaves it to the JPEG decoder to scale by 1/2, 1/4 or 1/8 where at least `oversampling`
times the model's input is left; scaling to the input is done as always then. Stores hold photos of
about the model's own size, so larger ones are laid out of several validation photos side by side:
their pixels are as sharp as pixels can be, which real large photos rarely are. One of the photos
has the phrase and the truth; the mask is compared with it, and with that of a whole decoding.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks import machine
from model.bundle import DEFAULT_BUNDLE
from model.preprocess import (
    letterbox_geometry,
    letterbox_picture,
    restore_probability,
    sigmoid,
)
from service.backends import load_model
from service.backends.base import LoadedModel, LoadOptions
from service.image_input import OVERSAMPLING, decode_photo
from training.data.lmdb_store import PhraseStore, decode_rle

_TILE = 320
_MAX_PIXELS = 10**9


@dataclass(frozen=True)
class Layout:
    """A JPEG laid out of several photos; the phrase is about one of them."""

    jpeg: bytes
    phrase: str
    truth: NDArray[np.bool_]


def layouts(store: PhraseStore, side: int, number: int, seed: int = 0) -> Iterator[Layout]:
    """`number` squares of `side` pixels, from validation photos that have a class phrase."""
    rng = np.random.default_rng(seed)
    tiles = side // _TILE
    ids = [i for i in store.image_ids("val") if min(store.photo(i).shape[:2]) >= _TILE // 2]
    made = 0
    while made < number:
        first, *others = rng.choice(ids, tiles**2, replace=False)
        phrases = [record for record in store.phrases(first) if record.kind == "class"]
        if not phrases:
            continue
        record = phrases[rng.integers(len(phrases))]
        photo, mask = store.photo(first), decode_rle(record.rle)
        tile, truth = _cut(photo), _cut(mask)
        if truth.mean() < 0.01:
            continue
        places = rng.permutation(tiles**2)
        canvas = np.zeros((side, side, 3), dtype=np.uint8)
        whole = np.zeros((side, side), dtype=np.bool_)
        for place, pixels in zip(
            places, [tile, *(_cut(store.photo(i)) for i in others)], strict=True
        ):
            row, column = divmod(int(place), tiles)
            canvas[_at(row), _at(column)] = pixels
        row, column = divmod(int(places[0]), tiles)
        whole[_at(row), _at(column)] = truth
        buffer = BytesIO()
        Image.fromarray(canvas).save(buffer, "JPEG", quality=92)
        yield Layout(buffer.getvalue(), record.phrase, whole)
        made += 1


def _cut(pixels: NDArray[Any]) -> NDArray[Any]:
    """The middle, a tile; what is smaller is repeated at its edge."""
    height, width = pixels.shape[:2]
    top, left = max(0, (height - _TILE) // 2), max(0, (width - _TILE) // 2)
    cut = pixels[top : top + _TILE, left : left + _TILE]
    missing = [(0, _TILE - cut.shape[0]), (0, _TILE - cut.shape[1])]
    return np.pad(cut, missing + [(0, 0)] * (cut.ndim - 2), mode="edge")


def _at(place: int) -> slice:
    return slice(place * _TILE, (place + 1) * _TILE)


@dataclass(frozen=True)
class Seen:
    """What came of one decoding: the mask (H, W), and milliseconds of the decoder and letterbox."""

    mask: NDArray[np.bool_]
    milliseconds: float


def look(model: LoadedModel, layout: Layout, oversampling: float | None) -> Seen:
    """Decode for the model's input at that oversampling (None: whole), and segment."""
    spec = model.spec
    least = None if oversampling is None else round(oversampling / OVERSAMPLING * spec.image_size)
    start = time.process_time()
    photo = decode_photo(layout.jpeg, _MAX_PIXELS, least)
    geometry = letterbox_geometry(photo.height, photo.width, spec.image_size)
    square = letterbox_picture(photo.picture, geometry)
    spent = 1000 * (time.process_time() - start)
    tokens = model.tokenizer.encode([layout.phrase], spec.word_length).tokens
    backend = model.backend
    logits = backend.decode(backend.encode_image(square[None]), backend.encode_text(tokens))()[0]
    return Seen(restore_probability(sigmoid(logits), geometry) > spec.threshold, spent)


def iou(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> float:
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """A row for each side and oversampling."""
    model = load_model("onnx", options.bundle, LoadOptions())
    store = PhraseStore(options.data)
    rows = []
    for side in options.sides:
        made = list(layouts(store, side, options.photos))
        whole = [look(model, layout, None) for layout in made]
        for oversampling in (None, *options.oversampling):
            seen = [look(model, layout, oversampling) for layout in made]
            gain = np.array(
                [
                    iou(a.mask, layout.truth) - iou(b.mask, layout.truth)
                    for a, b, layout in zip(seen, whole, made, strict=True)
                ]
            )
            rows.append(
                {
                    "side": side,
                    "oversampling": oversampling,
                    "milliseconds": float(np.median([one.milliseconds for one in seen])),
                    "mean_iou": float(
                        np.mean([iou(s.mask, m.truth) for s, m in zip(seen, made, strict=True)])
                    ),
                    "gain": float(gain.mean()),
                    "gain_error": float(gain.std() / len(gain) ** 0.5),
                    "agreement": float(
                        np.mean([iou(a.mask, b.mask) for a, b in zip(seen, whole, strict=True)])
                    ),
                }
            )
    return {"machine": machine.describe(), "photos": options.photos, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="a phrase store")
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--photos", type=int, default=200)
    parser.add_argument("--sides", type=int, nargs="+", default=[640, 960, 1280])
    parser.add_argument("--oversampling", type=float, nargs="+", default=[1.0, 1.25, 1.5, 2.0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = measure(options)
    print(f"{result['machine']}; {options.photos} layouts a side\n")
    print("| side | oversampling | decode + letterbox ms | mean IoU | change | same mask (IoU) |")
    print("|--:|--:|--:|--:|--:|--:|")
    for row in result["rows"]:
        told = "whole" if row["oversampling"] is None else f"{row['oversampling']:g}"
        print(
            f"| {row['side']} | {told} | {row['milliseconds']:.1f} | {row['mean_iou']:.4f} | "
            f"{row['gain']:+.4f} ± {row['gain_error']:.4f} | {row['agreement']:.3f} |"
        )
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
