"""How every figure of the report looks, and how it is written.

The colours are those of Okabe and Ito (2008), which people with any colour vision tell apart; a
variant keeps its colour in every figure. Measured marks are filled, quoted ones are outlined.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from .variants import OTHER, VARIANTS

COLOURS: dict[str, str] = dict(
    zip((*VARIANTS, OTHER), ("#E69F00", "#56B4E9", "#009E73", "#D55E00", "#CC79A7"), strict=True)
)
INK, GREY, RULE = "#222222", "#6B6B6B", "#DDDDDD"
ANSWER_COLOUR, TARGET_COLOUR = (213, 94, 0), (0, 158, 115)
"""RGB of an answered and of a true mask on a photo."""

WIDTH = 7.2
"""Inches; two columns of a paper."""

_STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "hatch.linewidth": 0.6,
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # text stays text for a publisher
}


@contextmanager
def figure_style() -> Iterator[None]:
    """Inside, matplotlib draws in the report's style; outside, nothing has changed."""
    with mpl.rc_context(_STYLE):
        yield


def caption(figure: Figure, lines: list[str]) -> None:
    """Small grey lines under the plots: a figure that travels alone says what it rests on."""
    figure.supxlabel("\n".join(lines), x=0.01, ha="left", fontsize=7, color=GREY)


def write_figure(figure: Figure, folder: Path, name: str, dpi: int = 200) -> list[Path]:
    """Write NAME.png and NAME.pdf; the same figure gives the same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    png, pdf = folder / f"{name}.png", folder / f"{name}.pdf"
    figure.savefig(png, dpi=dpi, metadata={"Software": None})
    figure.savefig(pdf, metadata={"CreationDate": None, "Producer": None, "Creator": None})
    return [png, pdf]
