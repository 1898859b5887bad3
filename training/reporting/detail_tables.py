"""The tables beside the paper's two: costs, what the words do, subsets, other data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training.complexity import PARTS, Complexity

from .groups import Group, Spread
from .protocol import data_label, scored_on
from .published import CRIS_RN101_PARAMETERS, PARAMETERS_CLAIM, SPEED_CLAIM
from .tables import NONE, Table, TableRow, metric_names, spread_text


def parameters_table(costs: Mapping[str, Complexity]) -> Table:
    """Weights of each named configuration by part, and what the paper says."""
    blank = (NONE,) * len(PARTS)
    rows = [
        TableRow(
            (
                *(name, "measured", *(_millions(cost.parameters[part]) for part in PARTS)),
                *(_millions(cost.total_parameters), "counted here"),
            ),
            "measured",
        )
        for name, cost in costs.items()
    ]
    quoted = {
        "SegVLM": (PARAMETERS_CLAIM.value, PARAMETERS_CLAIM.source),
        "CRIS-RN101": (_millions(CRIS_RN101_PARAMETERS), "official implementation"),
    }
    rows += [
        TableRow((name, "quoted", *blank, value, source), "quoted")
        for name, (value, source) in quoted.items()
    ]
    parts = (part.replace("_", " ") for part in PARTS)
    header = ("configuration", "origin", *parts, "all", "source")
    columns = frozenset(range(2, 3 + len(PARTS)))
    return Table("Parameters (millions)", header, tuple(rows), columns)


def operations_table(costs: Mapping[str, Complexity]) -> Table:
    """Floating-point operations of each named configuration by stage."""
    rows = []
    for name, cost in costs.items():
        stages = (cost.image_flops, cost.text_flops, cost.decode_flops, cost.total_flops)
        size = f"{cost.image_size} x {cost.image_size}, {cost.word_length} tokens"
        cells = (name, "measured", *(f"{stage / 1e9:.2f}" for stage in stages), size)
        rows.append(TableRow(cells, "measured"))
    header = ("configuration", "origin", "image", "text", "decode", "sum", "input")
    notes = (
        "A multiply-add counts as 2. Counted are matrix products, convolutions (the deformable one "
        "as an ordinary one) and attention; not counted are normalisation, activations and "
        "interpolation. The image's stage runs once for an image, the other two once for each "
        "expression; the sum is one image with one expression. The paper publishes no such number.",
    )
    title = "Floating-point operations (GFLOP)"
    return Table(title, header, tuple(rows), frozenset(range(2, 6)), notes)


def speed_table(groups: Sequence[Group]) -> Table | None:
    """Frames per second where `evaluate --fps` measured them, and the paper's; None where not."""
    rows = []
    for group in groups:
        timed = next((run for run in group.runs if (run.scores or {}).get("frame_rate")), None)
        if timed is None or timed.scores is None:
            continue
        rate = timed.scores["frame_rate"]
        where = (
            f"{rate['device']}, {rate['precision']}, {rate['image_size']} x {rate['image_size']}"
        )
        for batch in rate["batches"]:
            cells = (group.label, "measured", str(batch["batch"]), f"{batch['whole']['fps']:.1f}")
            rows.append(TableRow((*cells, where), "measured"))
    if not rows:
        return None
    quoted = ("SegVLM", "quoted", "", SPEED_CLAIM.value, f"{SPEED_CLAIM.source}; GPU not named")
    rows.append(TableRow(quoted, "quoted"))
    header = ("network", "origin", "batch", "frames a second", "device and source")
    notes = ("The forward pass alone, an image and its expression, as `evaluate --fps` times it.",)
    return Table("Speed of inference", header, tuple(rows), frozenset({2, 3}), notes)


def listening_table(groups: Sequence[Group]) -> Table | None:
    """Mean IoU with the words replaced, where the scores hold the probes; None where none do."""
    rows = []
    for group in groups:
        probed = [run.scores for run in group.runs if run.scores and run.scores.get("probes")]
        if probed:
            cells = (group.label, "measured", str(len(probed)), *_probe_cells(probed))
            rows.append(TableRow(cells, "measured"))
    if not rows:
        return None
    header = ("variant", "origin", "n", "whole phrase", "class name only", "blank", "swap overlap")
    notes = (
        "Mean IoU (per cent) when each phrase is replaced by its class name or by a blank text: "
        "equal numbers mean that the words beyond the class are ignored. Swap overlap: IoU of the "
        "two answers when left and right are exchanged, over pairs where neither is empty; low is "
        "good.",
    )
    title = "Does it listen to the words?"
    return Table(title, header, tuple(rows), frozenset(range(2, 7)), notes)


def breakdown_table(groups: Sequence[Group], key: str, title: str) -> Table | None:
    """Mean IoU by the groups that the scores hold under `key`, such as "subsets"; None if none."""
    shown = [group for group in groups if group.scores.get(key)]
    names = list(dict.fromkeys(name for group in shown for name in group.scores[key]))
    if not names:
        return None
    rows = []
    for name in names:
        cells = [_subset_cell(group, key, name) for group in shown]
        num = max(int(group.scores[key].get(name, {}).get("num", 0)) for group in shown)
        rows.append(TableRow((name, "measured", f"{num:,}", *cells), "measured"))
    header = ("phrases", "origin", "number", *(group.label for group in shown))
    notes = tuple(dict.fromkeys(data_label(group.scores) for group in shown))
    columns = frozenset(range(2, 3 + len(shown)))
    return Table(title, header, tuple(rows), columns, notes)


def generalisation_table(others: Mapping[str, Mapping[str, Any]]) -> Table:
    """One row for each further data set that the trained model was scored on."""
    thresholds = ("0.5", "0.7", "0.9")
    rows = []
    for name, scores in others.items():
        overall = scores["all"]
        values = [overall["mean_iou"], *(overall["precision"][t] for t in thresholds)]
        cells = (f"{100 * value:.2f}" for value in (*values, overall["cum_iou"]))
        rows.append(TableRow((name, "measured", *cells, scored_on(scores)), "measured"))
    header = ("data", "origin", *metric_names(("mean_iou", *thresholds, "cum_iou")), "protocol")
    title = "Generalisation to other data (per cent)"
    return Table(title, header, tuple(rows), frozenset(range(2, 7)))


def _probe_cells(probed: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    whole = _spread([scores["all"]["mean_iou"] for scores in probed])
    replaced = [
        _spread([scores["probes"][name]["all"]["mean_iou"] for scores in probed])
        for name in ("class_name_only", "blank")
    ]
    overlaps = [scores["probes"]["swap"]["overlap"] for scores in probed]
    return (whole, *replaced, _spread([overlap for overlap in overlaps if overlap is not None]))


def _subset_cell(group: Group, key: str, name: str) -> str:
    found = [(run.scores or {}).get(key, {}).get(name) for run in group.runs]
    return _spread([each["mean_iou"] for each in found if each and each["num"]])


def _spread(shares: Sequence[float]) -> str:
    """Shares 0..1 as per cent with their spread."""
    return spread_text(Spread(tuple(100 * share for share in shares))) if shares else NONE


def _millions(number: int) -> str:
    return f"{number / 1e6:.2f}"
