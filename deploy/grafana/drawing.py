"""Draws one panel from Prometheus's answers, about as Grafana does."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.transforms import Bbox
from numpy.typing import NDArray

from deploy.grafana.canvas import (
    COLOURS,
    PALETTE,
    SMALL,
    Box,
    draw_axes,
    draw_legend,
    draw_time_axis,
    moments,
)
from deploy.grafana.prometheus_api import Series
from deploy.grafana.units import format_value

Named = tuple[str, Series]
"""A series and its name in the legend."""


def draw_panel(box: Box, panel: dict[str, Any], found: Sequence[Named]) -> None:
    """The panel with its title; "No data" where there is none."""
    frame = box.axes(0, 0, 0, 0)
    frame.set(xticks=[], yticks=[])
    frame.set_facecolor("white")
    for spine in frame.spines.values():
        spine.set_color("#dddddd")
    frame.text(
        8 / box.width, 1 - 6 / box.height, panel["title"], va="top", fontsize=9, weight="bold"
    )
    if not found:
        frame.text(0.5, 0.45, "No data", ha="center", color="#888888")
        return
    _KINDS[panel["type"]](box, panel, found)


def _time_series(box: Box, panel: dict[str, Any], found: Sequence[Named]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults["custom"]
    axes = box.axes(62, 28, 12, 44)
    colours = [_colour_of(panel, name, place) for place, (name, _) in enumerate(found)]
    if custom["stacking"]["mode"] == "normal":
        times, rows = _aligned(found)
        axes.stackplot(moments(times), rows, colors=colours, alpha=0.75, linewidth=0)
    else:
        for (_, series), colour in zip(found, colours, strict=True):
            times, values_now = _with_gaps(series)
            axes.plot(moments(times), values_now, color=colour, linewidth=1.1)
    if custom["scaleDistribution"]["type"] == "log":
        axes.set_yscale("log")
    axes.set_ylim(defaults.get("min"), defaults.get("max"))
    for step in defaults["thresholds"]["steps"][1:]:
        axes.axhline(step["value"], color=COLOURS[step["color"]], linewidth=1, linestyle="--")
    draw_axes(box, axes, defaults["unit"])
    draw_legend(box, [name for name, _ in found], colours)


def _heatmap(box: Box, panel: dict[str, Any], found: Sequence[Named]) -> None:
    axes = box.axes(62, 28, 90, 26)
    rows = sorted(found, key=lambda named: float(named[1].labels["le"]))
    times, upto = _aligned(rows)
    cells = np.diff(upto, axis=0, prepend=0.0).clip(min=0)
    used = np.flatnonzero(cells.max(axis=1) > 1e-9)
    first, last = (int(used.min()), int(used.max())) if used.size else (0, len(rows) - 1)
    step = times[1] - times[0] if len(times) > 1 else 1.0
    edges = moments([time - step for time in times[:1]] + times)
    shown = np.ma.masked_less_equal(cells[first : last + 1], 1e-9)
    rows_shown = np.arange(first, last + 2)
    norm = PowerNorm(panel["options"]["color"]["exponent"], vmin=0)
    mesh = axes.pcolormesh(edges, rows_shown, shown, cmap="Oranges", norm=norm)
    bounds = [float(series.labels["le"]) for _, series in rows]
    unit, cell_unit = panel["options"]["yAxis"]["unit"], panel["options"]["cellValues"]["unit"]
    below = [0.0, *bounds]
    marked = rows_shown[:: 2 if len(rows_shown) > 10 else 1]
    axes.set_yticks(marked, [_bound(below[row], unit) for row in marked], fontsize=SMALL)
    draw_time_axis(box, axes)
    legend = box.axes(box.width - 78, 28, 66, 26)
    bar = box.figure.colorbar(mesh, cax=legend)
    bar.ax.yaxis.set_major_formatter(lambda value, _: format_value(value, cell_unit))
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=SMALL)


def _stat(box: Box, panel: dict[str, Any], found: Sequence[Named]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    (_, series), *_ = found
    times, values = _with_gaps(series)
    finite = [value for value in values if math.isfinite(value)]
    newest = finite[-1] if finite else math.nan
    colour = COLOURS["text"]
    for step in defaults["thresholds"]["steps"]:
        if step["value"] is None or newest >= step["value"]:
            colour = COLOURS[step["color"]]
    axes = box.axes(2, 30, 2, 2)
    axes.plot(moments(times), values, color=colour, linewidth=1, alpha=0.5)
    axes.fill_between(moments(times), values, color=colour, alpha=0.12, linewidth=0)
    axes.set_xlim(*moments(box.shown))
    highest = max(finite, default=0.0)
    axes.set_ylim(0, 2.2 * highest if highest > 0 else 1.0)
    axes.axis("off")
    shown = format_value(newest, defaults["unit"]) if finite else "No data"
    frame = box.axes(2, 30, 2, 2)
    frame.axis("off")
    frame.text(0.5, 0.72, shown, ha="center", va="center", fontsize=20, color=colour, weight="bold")


def _bar_gauge(box: Box, panel: dict[str, Any], found: Sequence[Named]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    names = [name for name, _ in found]
    values = [series.newest for _, series in found]
    axes = box.axes(150, 30, 70, 8)
    axes.barh(range(len(names)), values, color=COLOURS[defaults["color"]["fixedColor"]])
    for place, value in enumerate(values):
        shown = format_value(round(value), defaults["unit"])
        axes.text(value, place, f" {shown}", va="center", fontsize=9, color=COLOURS["text"])
    axes.set_yticks(range(len(names)), names, fontsize=9)
    axes.set_xlim(0, max(*values, 1.0))
    axes.invert_yaxis()
    axes.set_xticks([])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)


def _table(box: Box, panel: dict[str, Any], found: Sequence[Named]) -> None:
    unit = panel["fieldConfig"]["defaults"]["unit"]
    columns = panel["transformations"][0]["options"]["renameByName"]
    axes = box.axes(8, 32, 8, 8)
    axes.axis("off")
    cells = [
        [
            format_value(series.newest, unit) if label == "Value" else series.labels[label]
            for label in columns
        ]
        for _, series in found
    ]
    height = min(1.0, 0.12 * (1 + len(cells)))
    made = axes.table(
        cells,
        colLabels=list(columns.values()),
        cellLoc="left",
        bbox=Bbox.from_bounds(0, 1 - height, 1, height),
    )
    made.auto_set_font_size(False)
    made.set_fontsize(8.5)
    for (row, _), cell in made.get_celld().items():
        cell.set_edgecolor("#dddddd")
        cell.set_text_props(weight="bold" if row == 0 else "normal")


_KINDS: dict[str, Callable[[Box, dict[str, Any], Sequence[Named]], None]] = {
    "timeseries": _time_series,
    "heatmap": _heatmap,
    "stat": _stat,
    "bargauge": _bar_gauge,
    "table": _table,
}


def _colour_of(panel: dict[str, Any], name: str, place: int) -> str:
    for override in panel["fieldConfig"]["overrides"]:
        if re.search(override["matcher"]["options"].strip("/"), name):
            return COLOURS[override["properties"][0]["value"]["fixedColor"]]
    return PALETTE[place % len(PALETTE)]


def _with_gaps(series: Series) -> tuple[list[float], list[float]]:
    """Times and values, with a hole where Prometheus had no value."""
    times = [time for time, _ in series.points]
    step = min((b - a for a, b in pairwise(times)), default=1.0)
    filled: list[tuple[float, float]] = []
    for time, value in series.points:
        if filled and time - filled[-1][0] > 1.5 * step:
            filled.append((filled[-1][0] + step, math.nan))
        filled.append((time, value if math.isfinite(value) else math.nan))
    return [time for time, _ in filled], [value for _, value in filled]


def _aligned(found: Sequence[Named]) -> tuple[list[float], NDArray[np.float64]]:
    """All times, and a row of values for each series, 0 where it has none."""
    times = sorted({time for _, series in found for time, _ in series.points})
    rows = []
    for _, series in found:
        known = {time: value for time, value in series.points if math.isfinite(value)}
        rows.append([known.get(time, 0.0) for time in times])
    return times, np.array(rows)


def _bound(value: float, unit: str) -> str:
    return "more" if math.isinf(value) else format_value(value, unit)
