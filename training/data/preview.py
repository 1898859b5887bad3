"""A contact sheet of phrases on photos, so that a person can check what was made."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from training.data.lmdb_store import PhraseRecord, PhraseStore, decode_rle

_CELL = 300  # pixels: the photo's square, the caption below it
_CAPTION = 44
_COLUMNS = 5
_TINT = np.array([255, 0, 120], dtype=np.float32)


def render_preview(
    store: PhraseStore,
    out_png: Path,
    split: str = "val",
    count: int = 20,
    seed: int = 0,
    *,
    kinds: tuple[str, ...] | None = None,
    sources: tuple[str, ...] | None = None,
) -> int:
    """Draw `count` random phrases of a split, each on its photo, into a PNG.

    The target is tinted and outlined; below stand the phrase, its kind and source.

    Returns:
        The number of phrases drawn, fewer than `count` when the choice holds fewer.

    Raises:
        ValueError: no phrase of the split is of the given kinds and sources.
    """
    chosen = []
    for image_id in store.image_ids(split, sources):
        for phrase in store.phrases(image_id):
            if kinds is None or phrase.kind in kinds:
                chosen.append((image_id, phrase))
    if not chosen:
        raise ValueError(
            f"{store.path} holds no such phrases in split {split!r}; try another split"
        )
    chosen = Random(seed).sample(chosen, min(count, len(chosen)))
    columns = min(_COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    sheet = Image.new("RGB", (columns * _CELL, rows * (_CELL + _CAPTION)), "white")
    for position, (image_id, phrase) in enumerate(chosen):
        cell = _draw_cell(store, image_id, phrase)
        sheet.paste(cell, (position % columns * _CELL, position // columns * (_CELL + _CAPTION)))
    out_png.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out_png, "PNG")
    return len(chosen)


def tint(pixels: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint8]:
    """The photo (H, W, 3) with the mask (H, W) tinted and outlined, the rest dimmed a little."""
    shown = pixels.astype(np.float32)
    shown[mask] = 0.6 * shown[mask] + 0.4 * _TINT
    shown[~mask] *= 0.85
    shown[_outline(mask)] = _TINT
    return shown.astype(np.uint8)


def _draw_cell(store: PhraseStore, image_id: str, phrase: PhraseRecord) -> Image.Image:
    photo = Image.fromarray(tint(store.photo(image_id), decode_rle(phrase.rle)))
    photo.thumbnail((_CELL - 4, _CELL - 4))
    cell = Image.new("RGB", (_CELL, _CELL + _CAPTION), "white")
    cell.paste(photo, ((_CELL - photo.width) // 2, (_CELL - photo.height) // 2))
    draw = ImageDraw.Draw(cell)
    draw.text((4, _CELL), phrase.phrase, fill="black", font=ImageFont.load_default(16))
    note = f"{phrase.kind}, {store.image(image_id).source or 'no source'} {image_id}"
    draw.text((4, _CELL + 22), note, fill="grey", font=ImageFont.load_default(12))
    return cell


def _outline(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Pixels of the mask with a neighbour outside it."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    return mask & ~inner
