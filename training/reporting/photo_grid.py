"""A grid of photos with column titles, a line of text over each row, and a number in a cell.

The places are computed, not left to matplotlib's layout: photos of all shapes share one column
width, and a long phrase moves nothing.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from training.metrics import Mask
from training.reporting.mask_edges import grown

from .figure_style import GREY, INK, WIDTH

_GAP = 0.05
_TEXT_LINE, _CAPTION_LINE = 0.22, 0.125
_LETTERS_AN_INCH = 12  # of a column's title
_MOST_TALL, _LEAST_TALL = 1.3, 0.5
_PIXELS_AN_INCH = 300


@dataclass(frozen=True)
class Cell:
    """A photo uint8 (H, W, 3), a mask bool (H, W) in it, and what stands in its corner.

    The mask is filled and the rest greyed; with `filled` off it is an outline on the photo.
    """

    photo: NDArray[np.uint8]
    mask: Mask | None = None
    colour: tuple[int, int, int] = (0, 0, 0)
    number: str = ""
    filled: bool = True


@dataclass(frozen=True)
class GridRow:
    """A line of text and the cells below it."""

    text: str
    cells: Sequence[Cell]


def photo_grid(rows: Sequence[GridRow], titles: Sequence[str], told: Sequence[str]) -> Figure:
    """Draw the rows under their column titles; `told` are sentences for the foot."""
    side = (WIDTH - _GAP * (len(titles) + 1)) / len(titles)
    heads = [textwrap.fill(title, max(8, int(_LETTERS_AN_INCH * side))) for title in titles]
    head = _TEXT_LINE * 0.8 * (0.4 + max(title.count("\n") + 1 for title in heads))
    tall = [side * _aspect(row) for row in rows]
    foot = [line for sentence in told for line in textwrap.wrap(sentence, 128)]
    bottom = _CAPTION_LINE * (len(foot) + 1)
    height = head + sum(tall) + (_TEXT_LINE + _GAP) * len(rows) + bottom
    figure = Figure(figsize=(WIDTH, height))
    for place, title in enumerate(heads):
        middle = _GAP + place * (side + _GAP) + side / 2
        top = 1 - 0.5 * head / height
        _write(figure, middle / WIDTH, top, title, size=8.5, ha="center", weight="bold")
    y = height - head
    for row, its_height in zip(rows, tall, strict=True):
        y -= _TEXT_LINE
        _write(figure, _GAP / WIDTH, (y + 0.35 * _TEXT_LINE) / height, _cut(row.text), size=8)
        y -= its_height
        for place, cell in enumerate(row.cells):
            left = _GAP + place * (side + _GAP)
            box = (left / WIDTH, y / height, side / WIDTH, its_height / height)
            _draw(figure, box, cell, round(side * _PIXELS_AN_INCH))
        y -= _GAP
    for place, line in enumerate(reversed(foot)):
        _write(
            figure, _GAP / WIDTH, (place + 0.8) * _CAPTION_LINE / height, line, size=7, colour=GREY
        )
    return figure


def _draw(figure: Figure, box: tuple[float, float, float, float], cell: Cell, side: int) -> None:
    axes = figure.add_axes(box)
    axes.set_axis_off()
    axes.imshow(_picture(cell, side), interpolation="antialiased")
    if cell.number:
        axes.text(
            *(0.03, 0.03, cell.number),
            transform=axes.transAxes,
            fontsize=7.5,
            color="white",
            bbox={"facecolor": INK, "edgecolor": "none", "alpha": 0.75, "pad": 1.5},
        )


def _picture(cell: Cell, side: int) -> NDArray[np.uint8]:
    """The cell at the size it is drawn in, tinted there so that the outline stays a line."""
    photo = Image.fromarray(cell.photo)
    photo.thumbnail((side, side / _LEAST_TALL))
    shown = np.asarray(photo)
    if cell.mask is None:
        return shown
    mask = Image.fromarray(cell.mask).resize(photo.size, Image.Resampling.NEAREST)
    return _highlighted(shown, np.asarray(mask), cell)


def _highlighted(photo: NDArray[np.uint8], mask: Mask, cell: Cell) -> NDArray[np.uint8]:
    """uint8 (H, W, 3): the masked part in the cell's colour, with a white-cased outline.

    The rest is greyed, because on a photo's own colours no tint stands out everywhere.
    """
    paint = np.array(cell.colour, dtype=np.float64)
    shown = photo.astype(np.float64)
    if cell.filled:
        grey = np.repeat(photo.mean(axis=2, keepdims=True), 3, axis=2)
        inside, outside = 0.45 * grey + 0.55 * paint, 0.7 * grey + 0.3 * photo
        shown = np.where(mask[..., None], inside, outside)
    line = 1 if cell.filled else 3
    narrow = grown(mask, line)
    shown[grown(mask, line + 1) & ~narrow] = 255
    shown[narrow & ~mask] = paint
    return shown.round().astype(np.uint8)


def _write(
    figure: Figure,
    x: float,
    y: float,
    text: str,
    *,
    size: float,
    ha: str = "left",
    weight: str = "normal",
    colour: str = INK,
) -> None:
    figure.text(x, y, text, fontsize=size, ha=ha, va="center", fontweight=weight, color=colour)


def _aspect(row: GridRow) -> float:
    height, width = row.cells[0].photo.shape[:2]
    return min(max(float(height / width), _LEAST_TALL), _MOST_TALL)


def _cut(text: str, longest: int = 110) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
