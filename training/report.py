"""The report of training runs: the paper's tables and figures, measured beside quoted.

`build_report` is what `python -m training report` calls; the parts are in `training/reporting`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from model.config import SegVLMConfig, preset_config

from .complexity import Complexity, measure_complexity
from .data.lmdb_store import PhraseStore
from .reporting.detail_tables import (
    breakdown_table,
    generalisation_table,
    listening_table,
    operations_table,
    parameters_table,
    speed_table,
)
from .reporting.document import Block, Bullets, Document, Paragraph, Section
from .reporting.drawing import Drawing, Inputs
from .reporting.groups import Group, comparable, gains, group_runs, uneven_seeds
from .reporting.html_page import to_html
from .reporting.markdown_page import to_markdown
from .reporting.protocol import data_label, is_phrasecut_test, protocol_of
from .reporting.published import PEERS, TABLE1, TABLE2, contradictions
from .reporting.runs import Run, find_runs, read_scores
from .reporting.score_tables import ablation_table, comparison_table, gains_table
from .reporting.tables import NONE, Table, TableRow
from .reporting.variants import VARIANTS

_PAPER_PRESETS = ("segvlm-rn101", "cris-rn101")
_GAIN_METRICS = ("mean_iou", "0.5", "0.6", "0.7", "0.8", "0.9")


@dataclass(frozen=True)
class Report:
    """What was written and what a person should be told.

    files: every file of the report. notes: lines about runs that are unfinished, foreign or
    different. left_out: lines about figures without inputs.
    """

    files: tuple[Path, ...]
    notes: tuple[str, ...]
    left_out: tuple[str, ...]


def build_report(
    paths: Sequence[Path],
    out: Path,
    *,
    data: Path | None = None,
    generalisation: Mapping[str, Path] | None = None,
    generalisation_data: Mapping[str, Path] | None = None,
) -> Report:
    """Write report.md, report.html, report.json and figures/ into `out`.

    Args:
        paths: run directories, or an ablation's directory of runs.
        data: the phrase store that was scored, for the figures with photos.
        generalisation: files of `evaluate --json` by the name of their data.
        generalisation_data: phrase stores by the same names, for example masks.

    Raises:
        ValueError: there is no run at all, or a file that was named is not what it should be.
    """
    runs, notes = find_runs(paths)
    others = {name: read_scores(path) for name, path in (generalisation or {}).items()}
    unknown = sorted((generalisation_data or {}).keys() - others.keys())
    if unknown:
        raise ValueError(
            f"--generalisation-data names {', '.join(unknown)}, which --generalisation does not"
        )
    stores = {name: PhraseStore(path) for name, path in (generalisation_data or {}).items()}
    store = None if data is None else PhraseStore(data)
    groups, group_notes = group_runs(runs)
    notes += [*group_notes, *uneven_seeds(groups)]
    drawing = Drawing(Inputs(runs, groups, store, others, stores), out / "figures")
    out.mkdir(parents=True, exist_ok=True)
    drawing.draw()
    costs = _costs(groups)
    document = _document(runs, groups, costs, others, drawing, notes)
    content = _content(runs, groups, costs, others, drawing, notes)
    texts = {
        "report.md": to_markdown(document),
        "report.html": to_html(document, out / "figures"),
        "report.json": json.dumps(content, indent=1, ensure_ascii=False) + "\n",
    }
    for name, text in texts.items():
        (out / name).write_text(text, encoding="utf-8")
    names = (f"{name}.{suffix}" for name in drawing.pictures for suffix in ("png", "pdf"))
    files = (*(out / name for name in texts), *(out / "figures" / name for name in names))
    return Report(files, tuple(notes), tuple(drawing.left_out))


def _document(
    runs: Sequence[Run],
    groups: Sequence[Group],
    costs: Mapping[str, Complexity],
    others: Mapping[str, Mapping[str, Any]],
    drawing: Drawing,
    notes: Sequence[str],
) -> Document:
    pictures = drawing.pictures
    steps = gains(groups, _GAIN_METRICS)
    comparison: list[Block | None] = [comparison_table(groups), pictures.get("figure4")]
    ablation: list[Block | None] = [
        _order(groups),
        ablation_table(groups),
        pictures.get("figure3"),
        gains_table(steps, _GAIN_METRICS),
        pictures.get("figure5"),
    ]
    words: list[Block | None] = [
        listening_table(groups),
        breakdown_table(groups, "kinds", "Mean IoU by kind of phrase (per cent)"),
        breakdown_table(groups, "subsets", "Mean IoU by PhraseCut subset (per cent)"),
    ]
    other_data: list[Block | None] = [
        generalisation_table(others) if others else None,
        pictures.get("figure7"),
        pictures.get("figure7_masks"),
    ]
    sections = [
        _section("What this is", [*_warnings(groups), Bullets(_reading())]),
        _section("Comparison", comparison),
        _section("Ablation", ablation),
        _section("Examples", [pictures.get("figure6"), pictures.get("figure8")]),
        _section("Words and subsets", words),
        _section("Other data", other_data),
        _section(
            "Size and cost", [parameters_table(costs), operations_table(costs), speed_table(groups)]
        ),
        _section("Training", [pictures.get("curves"), _runs_table(runs)]),
        _section("Notes", _notes(notes, drawing.left_out)),
    ]
    scored = sum(len(group.runs) for group in groups)
    return Document(
        "SegVLM: report of training runs",
        f"{len(runs)} runs, {scored} of them finished and scored. Measured rows come from these "
        "runs' files; quoted rows are other people's numbers as they published them.",
        tuple(section for section in sections if section.blocks),
    )


def _section(title: str, blocks: Sequence[Block | None]) -> Section:
    return Section(title, tuple(block for block in blocks if block is not None))


def _warnings(groups: Sequence[Group]) -> list[Block]:
    if not groups:
        return [Paragraph("Nothing measured: no run is both finished and scored; see Notes.", True)]
    foreign = dict.fromkeys(
        data_label(group.scores) for group in groups if not is_phrasecut_test(group.scores)
    )
    if not foreign:
        return []
    text = (
        "The measured rows are not results on PhraseCut's test split and must not be compared "
        "with the quoted ones as if they were. They compare the variants with each other, under "
        f"one budget. Measured on: {'; '.join(foreign)}."
    )
    return [Paragraph(text, True)]


def _reading() -> tuple[str, ...]:
    return (
        "Rows marked measured are read from the scores that `python -m training evaluate` "
        "computed, at the photos' original size, over all phrases of the split.",
        "Rows marked quoted stand as published, with their source; nothing of them was run here.",
        *contradictions(),
    )


def _order(groups: Sequence[Group]) -> Paragraph | None:
    """The rows by their measured mean IoU, beside the paper's order."""
    rows = comparable(groups)
    if len(rows) < 2:
        return None
    ranked = sorted(rows, key=lambda group: -group.spreads["mean_iou"].mean)
    mine = ", ".join(f"{g.label} {g.spreads['mean_iou'].mean:.2f}" for g in ranked)
    theirs = ", ".join(VARIANTS[row.key] for row in reversed(TABLE2))
    close = [
        f"{better.label} and {worse.label}"
        for better, worse in pairwise(ranked)
        if better.spreads["mean_iou"].low <= worse.spreads["mean_iou"].high
    ]
    if any(len(group.runs) < 2 for group in rows):
        spread = "With one seed for some row there is no spread to judge the distances by."
    elif close:
        spread = f"Not told apart by their seeds, whose ranges overlap: {'; '.join(close)}."
    else:
        spread = "The seeds' ranges do not overlap."
    return Paragraph(
        f"Mean IoU as measured, best first: {mine}. The paper's order: {theirs}. {spread}"
    )


def _runs_table(runs: Sequence[Run]) -> Table:
    rows = []
    for run in runs:
        best = max((row["all"]["mean_iou"] for row in run.validation_log), default=None)
        score = run.scores["all"]["mean_iou"] if run.scores else None
        cells = (
            *(run.name, run.label, str(run.seed), f"{run.step:,}"),
            "yes" if run.finished else "no",
            *(NONE if value is None else f"{100 * value:.2f}" for value in (best, score)),
        )
        rows.append(TableRow(cells, "measured"))
    header = ("run", "variant", "seed", "last step", "finished", "best validation", "scored")
    notes = ("Mean IoU in per cent: the best during training, and that of scores.json.",)
    return Table("Runs", header, tuple(rows), frozenset({2, 3, 5, 6}), notes)


def _notes(notes: Sequence[str], left_out: Sequence[str]) -> list[Block]:
    items = (*notes, *left_out)
    return [Bullets(items)] if items else []


def _costs(groups: Sequence[Group]) -> dict[str, Complexity]:
    """Of the paper's presets and of every different network among the groups."""
    networks = {name: preset_config(name) for name in _PAPER_PRESETS}
    for group in groups:
        model = group.runs[0].model
        if not any(_same_network(model, known) for known in networks.values()):
            networks[f"{model.preset}: {group.label}"] = model
    return {name: measure_complexity(network) for name, network in networks.items()}


def _same_network(first: SegVLMConfig, second: SegVLMConfig) -> bool:
    return {**first.to_dict(), "preset": ""} == {**second.to_dict(), "preset": ""}


def _content(
    runs: Sequence[Run],
    groups: Sequence[Group],
    costs: Mapping[str, Complexity],
    others: Mapping[str, Mapping[str, Any]],
    drawing: Drawing,
    notes: Sequence[str],
) -> dict[str, Any]:
    """report.json. Scores in per cent; what is quoted stands under "quoted" and nowhere else."""
    return {
        "format": "segvlm-report",
        "format_version": 1,
        "measured": {
            "runs": [
                {
                    "name": run.name,
                    "variant": run.variant,
                    "seed": run.seed,
                    "step": run.step,
                    "finished": run.finished,
                    "scored": run.scores is not None,
                }
                for run in runs
            ],
            "groups": [
                {
                    "variant": group.variant,
                    "label": group.label,
                    "runs": [run.name for run in group.runs],
                    "seeds": list(group.seeds),
                    "protocol": protocol_of(group),
                    "phrasecut_test": is_phrasecut_test(group.scores),
                    "differences": list(group.differences),
                    "scores": {name: s.to_dict() for name, s in group.spreads.items()},
                }
                for group in groups
            ],
            "gains": [
                {
                    "variant": gain.variant,
                    "metric": gain.metric,
                    "paired": gain.paired,
                    **gain.spread.to_dict(),
                }
                for gain in gains(groups, _GAIN_METRICS)
            ],
            "generalisation": {name: scores["all"] for name, scores in others.items()},
            "complexity": {name: cost.to_dict() for name, cost in costs.items()},
        },
        "quoted": {
            "table1": [asdict(row) for row in TABLE1],
            "table2": [asdict(row) for row in TABLE2],
            "peers": [asdict(row) for row in PEERS],
            "contradictions": contradictions(),
        },
        "figures": sorted(drawing.pictures),
        "notes": list(notes),
        "left_out": drawing.left_out,
    }
