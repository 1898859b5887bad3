"""Answers as a sheet of tiles: the photo with the answered mask filled and the truth outlined."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from training.gallery import Answered
from training.metrics import Mask
from training.reporting.mask_edges import grown

_PHOTO, _GAP, _COLUMNS = 230, 10, 5  # pixels; tiles in a row
_LINE, _TEXT_LINES, _LETTERS = 17, 3, 34
_LEGEND = 30
_ANSWER, _TRUTH = (230, 0, 110), (0, 190, 60)
_COLOURS = 256
_KEY = "filled: the answer    green outline: the truth, where it is known"


def answer_tiles(answers: Sequence[Answered]) -> Image.Image:
    """The sheet, a row of five after the other, with few enough colours for a small PNG."""
    rows = [answers[start : start + _COLUMNS] for start in range(0, len(answers), _COLUMNS)]
    strips = [_strip(row) for row in rows]
    width = max(strip.width for strip in strips)
    sheet = Image.new("RGB", (width, _LEGEND + sum(strip.height for strip in strips)), "white")
    ImageDraw.Draw(sheet).text((_GAP, 8), _KEY, "black", font=ImageFont.load_default(15))
    top = _LEGEND
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet.quantize(_COLOURS, dither=Image.Dither.NONE)


def described(each: Answered) -> str:
    """What stands below the expression: "score 0.63, IoU 0.71"."""
    truth = each.question.truth
    told = f"score {each.score:.2f}"
    if each.iou is not None:
        return f"{told}, IoU {each.iou:.2f}"
    if truth is None:
        return told
    return f"{told}, " + ("nothing there: wrong" if each.mask.any() else "nothing there: right")


def _strip(row: Sequence[Answered]) -> Image.Image:
    """Tiles side by side, as tall as the tallest needs to be."""
    pictures = [_picture(each) for each in row]
    tallest = max(picture.height for picture in pictures)
    size = _GAP + len(row) * (_PHOTO + _GAP), tallest + _TEXT_LINES * _LINE + _GAP
    strip, font = Image.new("RGB", size, "white"), ImageFont.load_default(13)
    draw = ImageDraw.Draw(strip)
    for place, (each, picture) in enumerate(zip(row, pictures, strict=True)):
        left = _GAP + place * (_PHOTO + _GAP)
        strip.paste(picture, (left + (_PHOTO - picture.width) // 2, tallest - picture.height))
        lines = textwrap.wrap(f"“{each.question.expression}”", _LETTERS)[: _TEXT_LINES - 1]
        for number, line in enumerate(lines):
            draw.text((left, tallest + number * _LINE), line, "black", font=font)
        below = tallest + len(lines) * _LINE
        draw.text((left, below), described(each), (90, 90, 90), font=font)
    return strip


def _picture(each: Answered) -> Image.Image:
    """The photo at the tile's size, painted there so that lines stay lines."""
    photo = Image.fromarray(each.question.photo)
    scale = _PHOTO / max(photo.size)
    size = (max(1, round(photo.width * scale)), max(1, round(photo.height * scale)))
    shown: NDArray[np.floating] = np.asarray(photo.resize(size, Image.Resampling.BICUBIC), float)
    mask = _resized(each.mask, size)
    # Greyed outside and tinted inside: on a photo's own colours no tint stands out everywhere.
    grey = np.repeat(shown.mean(axis=2, keepdims=True), 3, axis=2)
    shown = 0.55 * shown + 0.45 * grey
    shown[mask] = 0.3 * grey[mask] + 0.7 * np.array(_ANSWER)
    shown[grown(mask, 1) & ~mask] = 0
    if each.question.truth is not None:
        truth = _resized(each.question.truth, size)
        shown[grown(truth, 3) & ~truth] = 255
        shown[grown(truth, 2) & ~truth] = _TRUTH
    return Image.fromarray(shown.round().clip(0, 255).astype(np.uint8))


def _resized(mask: Mask, size: tuple[int, int]) -> Mask:
    return np.asarray(Image.fromarray(mask).resize(size, Image.Resampling.NEAREST))
