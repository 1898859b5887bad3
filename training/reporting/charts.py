"""Figures 3, 4 and 5 and the training curves: charts of what was measured beside what is quoted."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from .figure_style import COLOURS, GREY, INK, WIDTH, caption
from .groups import METRICS, Gain, Group, Spread
from .protocol import data_label
from .published import TABLE1, TABLE2
from .runs import THRESHOLDS, Run
from .score_tables import published_gain, published_score
from .tables import metric_names
from .variants import VARIANTS

CHART_METRICS = ("mean_iou", "0.5", "0.9")
_QUOTED = "quoted: SegVLM paper, Table 2 (PhraseCut test)"
_BAR = 0.38


def ablation_chart(groups: Sequence[Group]) -> Figure:
    """Figure 3: mean IoU, P@50 and P@90 of each variant, ours filled, the paper's outlined."""
    mine = {
        (group.variant, metric): group.spreads[metric] for group in groups for metric in METRICS
    }
    quoted = {
        (row.key, metric): published_score(row, metric)
        for row in TABLE2
        for metric in CHART_METRICS
    }
    return _bars([row.key for row in TABLE2], mine, quoted, groups, "%", ".1f")


def precision_chart(groups: Sequence[Group]) -> Figure:
    """Figure 4: precision over the IoU threshold, measured lines full, quoted ones dashed."""
    figure = Figure(figsize=(WIDTH, 3.6), layout="constrained")
    axes = figure.subplots()
    thresholds = [100 * float(threshold) for threshold in THRESHOLDS]
    for group in groups:
        spreads = [group.spreads[threshold] for threshold in THRESHOLDS]
        colour = COLOURS[group.variant]
        label = f"{group.label} (n = {len(group.runs)})"
        means = [spread.mean for spread in spreads]
        axes.plot(thresholds, means, "o-", color=colour, label=label, zorder=3)
        if len(group.runs) > 1:
            lows, highs = ([getattr(s, end) for s in spreads] for end in ("low", "high"))
            axes.fill_between(thresholds, lows, highs, color=colour, alpha=0.2, linewidth=0)
    quoted = [row for row in (*TABLE1, TABLE2[-1]) if row.precision]
    shades = np.linspace(0.72, 0.15, len(quoted))
    for row, shade, marker in zip(quoted, shades, "sD^vXP", strict=False):
        points = {100 * float(key): value for key, value in row.precision.items()}
        table = row.source.rpartition(", ")[2]
        axes.plot(
            *(list(points), list(points.values())),
            marker=marker,
            linestyle=(0, (4, 2)),
            linewidth=1.1,
            markersize=4.5,
            markerfacecolor="white",
            color=str(shade),
            label=f"{'SegVLM' if row.key == 'se' else row.system} ({table})",
        )
    axes.set_xticks(thresholds, [f"{threshold:.0f}" for threshold in thresholds])
    axes.set_xlabel("IoU threshold (%)")
    axes.set_title("Phrases above the threshold (%)")
    axes.set_ylim(bottom=0)
    _two_part_legend(figure, axes, len(groups))
    caption(figure, [*_protocol_lines(groups), "Dashed, open marks: quoted from the SegVLM paper."])
    return figure


def gains_chart(found: Sequence[Gain], groups: Sequence[Group]) -> Figure:
    """Figure 5: what each step adds, in percentage points, ours filled, the paper's outlined."""
    mine = {(gain.variant, gain.metric): gain.spread for gain in found}
    quoted = {
        (after.key, metric): published_gain(before, after, metric)
        for before, after in pairwise(TABLE2)
        for metric in CHART_METRICS
    }
    return _bars([row.key for row in TABLE2[1:]], mine, quoted, groups, "points", "+.1f")


def curves_chart(runs: Sequence[Run]) -> Figure:
    """Loss, its cross-entropy term and the validation mean IoU of every run."""
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    total, entropy, validation = figure.subplots(1, 3, sharex=True)
    for run in runs:
        colour = COLOURS[run.variant]
        for axes, key in ((total, "loss"), (entropy, "bce")):
            rows = [row for row in run.train_log if isinstance(row.get(key), int | float)]
            steps, values = [row["step"] for row in rows], [row[key] for row in rows]
            axes.plot(steps, _smoothed(values), color=colour, linewidth=1.2, alpha=0.9)
        points = [(row["step"], 100 * row["all"]["mean_iou"]) for row in run.validation_log]
        if points:
            validation.plot(*zip(*points, strict=True), "o-", color=colour, linewidth=1.2, ms=3)
    total.set_title("Training loss")
    entropy.set_title("Its cross-entropy term")
    validation.set_title("Validation mean IoU (%)")
    for axes in (total, entropy, validation):
        axes.set_xlabel("step")
        axes.margins(x=0.02)
    labels = {run.variant: run.label for run in runs}
    order = [variant for variant in COLOURS if variant in labels]
    handles = [Line2D([], [], color=COLOURS[v], label=labels[v]) for v in order]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(order))
    told = (
        "One line a run. The baseline's loss is cross-entropy alone, so only the middle panel "
        "compares losses. Losses are running means over the last five logged rows."
    )
    caption(figure, textwrap.wrap(told, 120))
    return figure


def _bars(
    variants: Sequence[str],
    mine: Mapping[tuple[str, str], Spread],
    quoted: Mapping[tuple[str, str], float],
    groups: Sequence[Group],
    unit: str,
    form: str,
) -> Figure:
    """A panel for each chart metric, a pair of bars for each variant, by (variant, metric)."""
    figure = Figure(figsize=(WIDTH, 1.15 + 0.5 * len(variants)), layout="constrained")
    panels = figure.subplots(1, len(CHART_METRICS), sharey=True)
    for axes, metric, name in zip(panels, CHART_METRICS, metric_names(CHART_METRICS), strict=True):
        for place, variant in enumerate(variants):
            spread = mine.get((variant, metric))
            if spread is not None:
                _measured_bar(axes, place - _BAR / 2, spread, COLOURS[variant], form)
            _quoted_bar(axes, place + _BAR / 2, quoted[variant, metric], COLOURS[variant], form)
        axes.axvline(0, color=GREY, linewidth=0.8)
        axes.set_title(f"{name} ({unit})")
        axes.grid(axis="x")
        axes.grid(visible=False, axis="y")
        axes.spines["left"].set_visible(False)
        low, high = axes.get_xlim()
        room = (0.28 if low < 0 else 0.2) * (high - low)  # for the numbers at the bars' ends
        axes.set_xlim(low - room if low < 0 else 0, high + room)
    panels[0].set_yticks(range(len(variants)), [VARIANTS[variant] for variant in variants])
    panels[0].invert_yaxis()
    _legend(figure, groups)
    caption(figure, _protocol_lines(groups))
    return figure


def _measured_bar(axes: Axes, place: float, spread: Spread, colour: str, form: str) -> None:
    axes.barh(place, spread.mean, _BAR, color=colour, zorder=2)
    if spread.num > 1:
        axes.hlines(place, spread.low, spread.high, color=INK, linewidth=1, zorder=3)
        axes.scatter(spread.values, [place] * spread.num, s=7, color=INK, linewidths=0, zorder=4)
    end = spread.low if spread.mean < 0 else spread.high
    _number(axes, place, spread.mean, end, INK, form)


def _quoted_bar(axes: Axes, place: float, value: float, colour: str, form: str) -> None:
    (bar,) = axes.barh(place, value, _BAR, color="white", edgecolor=colour, linewidth=1.1, zorder=2)
    bar.set_hatch("/////")
    _number(axes, place, value, value, GREY, form)


def _number(axes: Axes, place: float, value: float, end: float, colour: str, form: str) -> None:
    """The value beyond its bar's end, or beyond the whisker that reaches further."""
    left = value < 0
    axes.annotate(
        format(value, form).replace("-", "−"),
        (end, place),
        xytext=(-4 if left else 4, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="center",
        fontsize=7.5,
        color=colour,
    )


def _legend(figure: Figure, groups: Sequence[Group]) -> None:
    counts = sorted({len(group.runs) for group in groups})
    seeds = " or ".join(str(count) for count in counts)
    several = max(counts) > 1
    measured = f"measured: mean of {seeds} seeds, dots the seeds" if several else "measured"
    handles = [
        Patch(facecolor=GREY, label=measured),
        Patch(facecolor="white", edgecolor=GREY, hatch="/////", label=_QUOTED),
    ]
    figure.legend(handles=handles, loc="outside upper left", ncols=2)


def _two_part_legend(figure: Figure, axes: Axes, measured: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    empty = Line2D([], [], linestyle="none")
    handles = [empty, *handles[:measured], empty, *handles[measured:]]
    labels = ["Measured", *labels[:measured], "Quoted", *labels[measured:]]
    legend = figure.legend(handles, labels, loc="outside right upper")
    for text in legend.get_texts():
        if text.get_text() in ("Measured", "Quoted"):
            text.set_fontweight("bold")


def _protocol_lines(groups: Sequence[Group]) -> list[str]:
    told = dict.fromkeys(
        f"Measured: {data_label(group.scores)}; {group.runs[0].model.preset}." for group in groups
    )
    return [line for text in told for line in textwrap.wrap(text, 120)]


def _smoothed(values: Sequence[float], window: int = 5) -> list[float]:
    """Running mean over the last `window` values."""
    return [float(np.mean(values[max(0, end - window) : end])) for end in range(1, len(values) + 1)]
