"""A picture of what a network answers while it trains: photo, target and answer, side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .data.lmdb_store import PhraseRecord, PhraseStore, decode_rle
from .data.preview import tint
from .predictors import Predictor

_CELL, _CAPTION, _COLUMNS = 200, 24, 2  # pixels; a column is photo, target and answer


def answer_sheet(
    predictor: Predictor, store: PhraseStore, split: str, threshold: float, count: int = 8
) -> NDArray[np.uint8]:
    """The same phrases at every call: the first of `count` images spread over the split.

    Returns:
        uint8 (H, W, 3)
    """
    ids = [image_id for image_id in store.image_ids(split) if store.phrase_count(image_id)]
    chosen = ids[:: -(-len(ids) // count)]
    rows = -(-len(chosen) // _COLUMNS)
    sheet = Image.new("RGB", (_COLUMNS * 3 * _CELL, rows * (_CELL + _CAPTION)), "white")
    for place, image_id in enumerate(chosen):
        photo, phrase = store.photo(image_id), store.phrases(image_id)[0]
        (probability,) = predictor.predict(photo, [phrase.phrase])
        corner = (place % _COLUMNS * 3 * _CELL, place // _COLUMNS * (_CELL + _CAPTION))
        sheet.paste(_strip(photo, phrase, probability > threshold), corner)
    return np.asarray(sheet)


def save_sheet(sheet: NDArray[np.uint8], path: Path) -> None:
    """Write a sheet as PNG, with its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sheet).save(path)


def _strip(
    photo: NDArray[np.uint8], phrase: PhraseRecord, answer: NDArray[np.bool_]
) -> Image.Image:
    strip = Image.new("RGB", (3 * _CELL, _CELL + _CAPTION), "white")
    shown = (photo, tint(photo, decode_rle(phrase.rle)), tint(photo, answer))
    for column, pixels in enumerate(shown):
        cell = Image.fromarray(pixels)
        cell.thumbnail((_CELL - 4, _CELL - 4))
        strip.paste(cell, (column * _CELL, 0))
    font = ImageFont.load_default(14)
    ImageDraw.Draw(strip).text((2, _CELL), f"{phrase.phrase}: target, answer", "black", font=font)
    return strip
