"""Where a panel is drawn, and what the panels' axes have in common."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from matplotlib import dates
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

from deploy.grafana.units import format_value

PALETTE = ("#4c9f50", "#d9a514", "#3b8fd0", "#e0762f", "#c9433a", "#7a54b5", "#1fa7a0", "#a14d86")
COLOURS = {
    "green": "#4c9f50",
    "yellow": "#e3c02c",
    "orange": "#e0762f",
    "light-orange": "#f0a562",
    "red": "#d6453d",
    "dark-red": "#8f1f1a",
    "blue": "#3b8fd0",
    "purple": "#7a54b5",
    "text": "#333333",
}
SMALL = 7.5
_LETTER = 6.0  # pixels of one, about


@dataclass(frozen=True, slots=True)
class Box:
    """A panel's rectangle, in pixels from the figure's top left, and the time it shows."""

    figure: Figure
    shown: tuple[float, float]
    left: float
    top: float
    right: float
    bottom: float

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    def axes(self, left: float, top: float, right: float, bottom: float) -> Axes:
        """Axes so many pixels inside the box."""
        width, height = self.figure.get_size_inches() * self.figure.dpi
        x0, x1 = (self.left + left) / width, (self.right - right) / width
        y0, y1 = 1 - (self.bottom - bottom) / height, 1 - (self.top + top) / height
        return self.figure.add_axes((x0, y0, x1 - x0, y1 - y0))


def draw_legend(box: Box, names: Sequence[str], colours: Sequence[str]) -> None:
    """One line below the panel, as many names as fit."""
    axes = box.axes(8, box.height - 22, 8, 4)
    axes.axis("off")
    width, left = box.width - 16, 0.0
    for place, (name, colour) in enumerate(zip(names, colours, strict=True)):
        needed = 20 + _LETTER * len(name)
        if left + needed > width:
            axes.text(left / width, 0.5, f"+{len(names) - place}", va="center", fontsize=SMALL)
            return
        axes.text(left / width, 0.5, "\u25ac", color=colour, va="center", fontsize=SMALL)
        axes.text((left + 11) / width, 0.5, name, va="center", fontsize=SMALL)
        left += needed


def draw_axes(box: Box, axes: Axes, unit: str) -> None:
    """Time below, values with their unit on the left, a light grid."""
    axes.yaxis.set_major_formatter(lambda value, _: format_value(value, unit))
    axes.grid(color="#eeeeee", linewidth=0.8)
    axes.set_axisbelow(True)
    if unit == "bytes":
        power = math.floor(math.log2(max(axes.get_ylim()[1], 1.0) / 2.5))
        axes.yaxis.set_major_locator(MultipleLocator(2.0**power))
    elif axes.get_yscale() == "linear":
        axes.locator_params(axis="y", nbins=4)
    axes.tick_params(labelsize=SMALL)
    draw_time_axis(box, axes)


def draw_time_axis(box: Box, axes: Axes) -> None:
    """Hours and minutes, UTC, of all that is shown, whether there is data or not."""
    # matplotlib publishes no types for its dates.
    axes.xaxis.set_major_locator(
        dates.AutoDateLocator(minticks=3, maxticks=6)  # type: ignore[no-untyped-call]
    )
    axes.xaxis.set_major_formatter(dates.DateFormatter("%H:%M"))  # type: ignore[no-untyped-call]
    axes.tick_params(axis="x", labelsize=SMALL, length=2)
    axes.tick_params(axis="y", length=2, colors="#444444")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#cccccc")
    axes.set_xlim(*moments(box.shown))


def moments(times: Sequence[float]) -> Any:
    """Unix seconds as matplotlib counts time."""
    found = [datetime.fromtimestamp(time, UTC) for time in times]
    return dates.date2num(found)  # type: ignore[no-untyped-call]
