"""Figures 6, 7 and 8: what runs answer on photos, beside the truth; and scores on other data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from .figure_style import ANSWER_COLOUR, INK, TARGET_COLOUR, WIDTH, caption
from .groups import percent
from .photo_grid import Cell, GridRow, photo_grid
from .protocol import data_label
from .samples import SELECTION_RULE, Answer, Sample
from .tables import metric_names

_GENERALISATION_METRICS = ("mean_iou", "0.5", "0.9")


def qualitative_grid(
    samples: Sequence[Sample], columns: Mapping[str, Sequence[Answer]], told: str
) -> Figure:
    """Figure 6: a row a phrase; the photo, each variant's answer with its IoU, the target.

    columns: answers by the column's title, in order. told: which runs and data these are.
    """
    rows = []
    for place, sample in enumerate(samples):
        given = [_answered(sample, found[place]) for found in columns.values()]
        cells = [Cell(sample.image), *given, _target(sample)]
        rows.append(GridRow(f"“{sample.phrase}”", cells))
    return photo_grid(rows, ["Image", *columns, "Target"], [told, SELECTION_RULE])


def example_masks(
    found: Mapping[str, tuple[Sequence[Sample], Sequence[Answer]]], told: str
) -> Figure:
    """Figure 7's masks: by data set, a row a phrase; the photo, the answer, the target."""
    rows = []
    for name, (samples, given) in found.items():
        for sample, answer in zip(samples, given, strict=True):
            cells = [Cell(sample.image), _answered(sample, answer), _target(sample)]
            rows.append(GridRow(f"{name}: “{sample.phrase}”", cells))
    return photo_grid(rows, ["Image", "Answer", "Target"], [told, SELECTION_RULE])


def large_example(sample: Sample, answer: Answer, title: str, told: str) -> Figure:
    """Figure 8: one photo with the target's outline, and the answer beside it."""
    photo = Cell(sample.image, sample.target, TARGET_COLOUR, filled=False)
    row = GridRow(f"“{sample.phrase}”", [photo, _answered(sample, answer)])
    return photo_grid([row], ["Image, target outlined", title], [told, SELECTION_RULE])


def generalisation_chart(
    home: tuple[str, Mapping[str, Any]] | None, others: Mapping[str, Mapping[str, Any]]
) -> Figure:
    """Figure 7's scores: mean IoU, P@50 and P@90 on the run's own data and on others.

    home: name and scores of the data that the model belongs to, or None. Scores as `evaluate`
        writes them.
    """
    named = ([home] if home else []) + list(others.items())
    figure = Figure(figsize=(WIDTH, 0.9 + 0.62 * len(named)), layout="constrained")
    axes = figure.subplots()
    width = 0.26
    for place, (metric, label) in enumerate(
        zip(_GENERALISATION_METRICS, metric_names(_GENERALISATION_METRICS), strict=True)
    ):
        values = [percent(scores, metric) for _, scores in named]
        places = np.arange(len(named)) + (place - 1) * width
        shade = ("#0072B2", "#56B4E9", "#B9DDF2")[place]
        bars = axes.barh(places, values, width, color=shade, label=label)
        axes.bar_label(bars, fmt="%.1f", padding=3, fontsize=7, color=INK)
    axes.set_yticks(range(len(named)), [name for name, _ in named])
    axes.invert_yaxis()
    axes.grid(axis="x")
    axes.grid(visible=False, axis="y")
    axes.set_xlabel("per cent")
    axes.margins(x=0.08)
    figure.legend(loc="outside upper left", ncols=3)
    caption(figure, [f"{name}: {data_label(scores)}." for name, scores in named])
    return figure


def _answered(sample: Sample, answer: Answer) -> Cell:
    return Cell(sample.image, answer.mask, ANSWER_COLOUR, f"IoU {answer.iou:.2f}")


def _target(sample: Sample) -> Cell:
    return Cell(sample.image, sample.target, TARGET_COLOUR)
