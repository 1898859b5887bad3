"""Tables 1 and 2: measured rows beside quoted ones, every row saying which it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from .groups import Gain, Group
from .protocol import departures, protocol_of, short_label
from .published import PEERS, TABLE1, TABLE2, PublishedRow
from .runs import THRESHOLDS
from .tables import NONE, Table, TableRow, metric_names, signed_text, spread_text
from .variants import OTHER

SPREAD_NOTE = (
    "A measured cell is the mean over seeds ± half the range (largest minus smallest, halved); n "
    "is the number of seeds, and one seed has no spread. Every seed's value is in report.json."
)
_TABLE1_METRICS = ("mean_iou", "0.5", "0.7", "0.9")
_TABLE2_METRICS = ("mean_iou", *THRESHOLDS, "cum_iou")


def comparison_table(groups: Sequence[Group]) -> Table:
    """Table 1: our SegVLM (or whatever runs there are), measured; the other systems, quoted."""
    shown = [group for group in groups if group.variant in ("se", OTHER)] or list(groups)
    rows = [_measured(group, _TABLE1_METRICS) for group in shown]
    rows += [_quoted(row, _TABLE1_METRICS) for row in (*TABLE1, *PEERS)]
    notes = (SPREAD_NOTE, *_protocol_notes(shown), *_departure_notes(shown))
    header = ("system", "origin", "n", *metric_names(_TABLE1_METRICS), "scored on", "source")
    title = "Table 1. Comparison with other systems (per cent)"
    return Table(title, header, tuple(rows), frozenset(range(2, 7)), notes)


def ablation_table(groups: Sequence[Group]) -> Table:
    """Table 2: each row of the paper's, quoted, and ours below it."""
    rows: list[TableRow] = []
    notes = [SPREAD_NOTE, f"Quoted rows: {TABLE2[0].source}."]
    marks = dict.fromkeys(groups, "")
    flagged = (group for group in groups if group.differences)
    for number, group in enumerate(flagged, start=1):
        marks[group] = f" [{number}]"
        notes.append(
            f"[{number}] {group.label} differs from the other runs in more than switches and seed: "
            f"{'; '.join(group.differences)}."
        )
    for published in TABLE2:
        quoted = _quoted(published, _TABLE2_METRICS)
        rows.append(_with_empty_masks(quoted, NONE))
        mine = [group for group in groups if group.variant == published.key]
        rows += [_ablation_row(group, marks[group]) for group in mine]
        if not mine:
            blank = [NONE] * (len(_TABLE2_METRICS) + 1)
            cells = (published.system, "measured", "0", *blank, "no such run")
            rows.append(TableRow(cells, "measured"))
    others = [group for group in groups if group.variant == OTHER]
    rows += [_ablation_row(group, marks[group]) for group in others]
    notes += _protocol_notes(groups)
    names = (*metric_names(_TABLE2_METRICS), "empty masks")
    header = ("variant", "origin", "n", *names, "scored on")
    columns = frozenset(range(2, 3 + len(names)))
    return Table("Table 2. Ablation (per cent)", header, tuple(rows), columns, tuple(notes))


def gains_table(found: Sequence[Gain], metrics: Sequence[str]) -> Table:
    """What each step adds, ours beside the paper's, in percentage points."""
    rows: list[TableRow] = []
    for before, after in pairwise(TABLE2):
        quoted = tuple(f"{published_gain(before, after, metric):+.2f}" for metric in metrics)
        rows.append(TableRow((after.system, "quoted", "", *quoted), "quoted"))
        mine = {gain.metric: gain for gain in found if gain.variant == after.key}
        if mine:
            first = mine[metrics[0]]
            pairs = str(first.spread.num) if first.paired else "0"
            texts = tuple(signed_text(mine[metric].spread) for metric in metrics)
            rows.append(TableRow((after.system, "measured", pairs, *texts), "measured"))
    notes = (
        "A measured gain is taken seed by seed (a row minus the row before it, with the same "
        "seed), then averaged; ± is half the range, n the number of pairs (0: no common seed, the "
        "difference of the means). A gain that is smaller than its spread is not established.",
    )
    header = ("step", "origin", "n", *metric_names(metrics))
    columns = frozenset(range(2, 3 + len(metrics)))
    return Table("Gain of each step (percentage points)", header, tuple(rows), columns, notes)


def _protocol_notes(groups: Sequence[Group]) -> list[str]:
    return _shared_notes(groups, lambda group: f"measured on {protocol_of(group)}.")


def _departure_notes(groups: Sequence[Group]) -> list[str]:
    def told(group: Group) -> str:
        apart = departures(group)
        return f"not comparable with the quoted rows: {'; '.join(apart)}." if apart else ""

    return _shared_notes(groups, told)


def _shared_notes(groups: Sequence[Group], told: Callable[[Group], str]) -> list[str]:
    """One note for all groups of which the same is to be told."""
    labels: dict[str, list[str]] = {}
    for group in groups:
        labels.setdefault(told(group), []).append(group.label)
    return [f"{', '.join(names)}: {text}" for text, names in labels.items() if text]


def published_gain(before: PublishedRow, after: PublishedRow, metric: str) -> float:
    """Percentage points between two published rows."""
    return published_score(after, metric) - published_score(before, metric)


def published_score(row: PublishedRow, metric: str) -> float:
    """Per cent; NaN where nothing was published."""
    value = row.mean_iou if metric == "mean_iou" else row.precision.get(metric)
    return float("nan") if value is None else value


def _quoted(row: PublishedRow, metrics: Sequence[str]) -> TableRow:
    scores = [published_score(row, metric) for metric in metrics]
    cells = [NONE if score != score else f"{score:.2f}" for score in scores]
    if row.mean_iou_range:
        low, high = row.mean_iou_range
        cells[metrics.index("mean_iou")] = f"{low:.1f} to {high:.1f}"
    return TableRow((row.system, "quoted", "", *cells, row.protocol, row.source), "quoted")


def _measured(group: Group, metrics: Sequence[str], mark: str = "") -> TableRow:
    cells = (spread_text(group.spreads[metric]) for metric in metrics)
    name, where = f"{group.label}{mark}", short_label(group.scores)
    source = f"this report, {group.runs[0].model.preset}"
    return TableRow((name, "measured", str(len(group.runs)), *cells, where, source), "measured")


def _ablation_row(group: Group, mark: str) -> TableRow:
    empty = group.empty_masks
    text = NONE if empty is None else spread_text(empty)
    return _with_empty_masks(_measured(group, _TABLE2_METRICS, mark), text)


def _with_empty_masks(row: TableRow, text: str) -> TableRow:
    """The row for Table 2, where the source of all quoted rows is one and stands in a note."""
    *cells, where, _ = row.cells
    return TableRow((*cells, text, where), row.origin)
