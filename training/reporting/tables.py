"""What a table of the report is, and how its numbers are written."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from .groups import Spread

Origin = Literal["measured", "quoted"]

NONE = "–"
"""An empty cell: not published, or not measured."""


@dataclass(frozen=True)
class TableRow:
    """Cells of text; `origin` says whether a row is ours or somebody's."""

    cells: tuple[str, ...]
    origin: Origin


@dataclass(frozen=True)
class Table:
    """A table of a page. The columns numbered in `numeric` are set right."""

    title: str
    header: tuple[str, ...]
    rows: tuple[TableRow, ...]
    numeric: frozenset[int]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        assert all(len(row.cells) == len(self.header) for row in self.rows), self.title


def spread_text(spread: Spread) -> str:
    """ "29.13 ± 0.42", or the value alone for one seed."""
    if spread.num == 1:
        return f"{spread.mean:.2f}"
    return f"{spread.mean:.2f} ± {spread.half_range:.2f}"


def signed_text(spread: Spread) -> str:
    """As `spread_text`, with the sign that a difference has."""
    mean = f"{spread.mean:+.2f}".replace("-", "−")
    return mean + (f" ± {spread.half_range:.2f}" if spread.num > 1 else "")


def metric_names(metrics: Iterable[str]) -> tuple[str, ...]:
    """As a person reads them: "mean IoU", "P@50", "cumulative IoU"."""
    words = {"mean_iou": "mean IoU", "cum_iou": "cumulative IoU"}
    return tuple(words.get(metric) or f"P@{100 * float(metric):.0f}" for metric in metrics)
