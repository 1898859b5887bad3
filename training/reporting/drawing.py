"""Which figures a report gets: each that has its inputs, and a line for each that has not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from training.commands.checkpoint_source import PAPER_THRESHOLD
from training.data.lmdb_store import PhraseStore

from .charts import CHART_METRICS, ablation_chart, curves_chart, gains_chart, precision_chart
from .document import Picture
from .figure_style import figure_style, write_figure
from .groups import Group, comparable, gains
from .mask_figures import example_masks, generalisation_chart, large_example, qualitative_grid
from .protocol import data_label, threshold_label
from .runs import Run, fingerprint_of
from .samples import Answer, Sample, answers, unpicked_samples

_GRID_ROWS, _EXAMPLE_ROWS = 6, 3


@dataclass(frozen=True)
class Inputs:
    """What figures are drawn from.

    data: the phrase store that figures 6 and 8 take photos from, or None.
    others: scores on further data by name; other_data: their phrase stores by name.
    """

    runs: Sequence[Run]
    groups: Sequence[Group]
    data: PhraseStore | None = None
    others: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    other_data: Mapping[str, PhraseStore] = field(default_factory=dict)


class Drawing:
    """Draws into a folder. `pictures` are what was drawn, by name; `left_out` says what was not."""

    def __init__(self, inputs: Inputs, folder: Path) -> None:
        self._inputs, self._folder = inputs, folder
        self._rows = comparable(inputs.groups)
        self.pictures: dict[str, Picture] = {}
        self.left_out: list[str] = []

    def draw(self) -> None:
        """Every figure that can be drawn; those of an earlier report are removed first."""
        for old in (*self._folder.glob("figure*.p??"), *self._folder.glob("curves.p??")):
            old.unlink()
        with figure_style():
            self._curves()
            self._charts()
            self._masks()
            self._generalisation()

    def _add(self, name: str, figure: Figure, title: str, text: str, *, photos: bool) -> None:
        write_figure(figure, self._folder, name)
        self.pictures[name] = Picture(name, title, text, photos)

    def _curves(self) -> None:
        drawn = [run for run in self._inputs.runs if run.train_log]
        if not drawn:
            self.left_out.append("Training curves: no run has a log.jsonl with training rows.")
            return
        text = "Loss and validation score of every run, one line each."
        self._add("curves", curves_chart(drawn), "Training curves", text, photos=False)

    def _charts(self) -> None:
        groups, rows = self._inputs.groups, self._rows
        if rows:
            text = "Scores of each variant: filled bars measured here, outlined bars the paper's."
            self._add("figure3", ablation_chart(rows), "Figure 3. Ablation", text, photos=False)
        else:
            self._lack("Figure 3", "scored runs of the ablation's rows; `ablate` makes them")
        if groups:
            text = "Share of phrases whose mask overlaps the true one by more than the threshold."
            title = "Figure 4. Precision over IoU thresholds"
            self._add("figure4", precision_chart(groups), title, text, photos=False)
        else:
            self._lack("Figure 4", "finished runs with a scores.json")
        steps = gains(groups, CHART_METRICS)
        if steps:
            text = "What each step adds to the row before it, in percentage points."
            title = "Figure 5. Gain of each step"
            self._add("figure5", gains_chart(steps, rows), title, text, photos=False)
        else:
            self._lack("Figure 5", "two neighbouring rows of the ablation, scored alike")

    def _masks(self) -> None:
        shown = [group for group in self._rows or self._inputs.groups if _checkpoint(group)]
        store = self._inputs.data
        if store is None:
            self._lack("Figures 6 and 8", "`--data STORE`, the phrase store that was scored")
            return
        if not shown:
            self._lack("Figures 6 and 8", "finished, scored runs with their best.safetensors")
            return
        split = str(shown[0].scores["split"])
        samples = unpicked_samples(store, split, _GRID_ROWS + 1)
        found = {group: self._answers(group, samples) for group in shown}
        told = _told(shown) + _other_store(store, shown[0])
        columns = {group.label: found[group] for group in shown}
        title, text = "Figure 6. Answers of each variant", "Orange: the answer. Green: the target."
        rows = samples[:_GRID_ROWS]
        self._add("figure6", qualitative_grid(rows, columns, told), title, text, photos=True)
        missing = {group.label for group in self._rows} - set(columns)
        if missing:
            self._lack(f"Figure 6, {', '.join(sorted(missing))}", "the runs' best.safetensors")
        # By the same rule the next phrase, where there is one.
        last, final = samples[-1], shown[-1]
        told = _told([final]) + _other_store(store, final)
        figure = large_example(last, found[final][-1], final.label, told)
        self._add("figure8", figure, "Figure 8. One example", text, photos=True)

    def _generalisation(self) -> None:
        inputs = self._inputs
        if not inputs.others:
            self._lack(
                "Figure 7", "`--generalisation NAME=SCORES.json`, what `evaluate --json` wrote"
            )
            return
        model = (self._rows or list(inputs.groups))[-1:]
        home = (f"{model[0].scores['split']}, own data", model[0].scores) if model else None
        title = "Figure 7. Generalisation"
        text = (
            "Scores on other data, as they were passed in; the report cannot check that the same "
            "weights made them."
        )
        self._add("figure7", generalisation_chart(home, inputs.others), title, text, photos=False)
        checkpoint = _checkpoint(model[0]) if model else None
        if not inputs.other_data or checkpoint is None:
            wanted = "`--generalisation-data NAME=STORE` and the run's best.safetensors"
            self._lack("Figure 7's example masks", wanted)
            return
        found: dict[str, tuple[list[Sample], list[Answer]]] = {}
        for name, store in inputs.other_data.items():
            scores = inputs.others[name]
            samples = unpicked_samples(store, str(scores["split"]), _EXAMPLE_ROWS)
            found[name] = samples, answers(checkpoint, samples, _threshold(scores))
        figure = example_masks(found, _told(model))
        title = "Figure 7, examples. Answers on other data"
        text = "Orange: the answer. Green: the target."
        self._add("figure7_masks", figure, title, text, photos=True)

    def _answers(self, group: Group, samples: Sequence[Sample]) -> list[Answer]:
        checkpoint = _checkpoint(group)
        assert checkpoint is not None
        return answers(checkpoint, samples, _threshold(group.scores))

    def _lack(self, what: str, wanted: str) -> None:
        self.left_out.append(f"{what}: left out; needs {wanted}.")


def _threshold(scores: Mapping[str, Any]) -> float:
    """What the scores were made with; 0.35, the paper's baseline's, where they are of files."""
    threshold = scores["threshold"]
    return PAPER_THRESHOLD if threshold is None else float(threshold)


def _answering(group: Group) -> Run | None:
    """The first seed's run that still has its weights."""
    return next((run for run in group.runs if run.checkpoint), None)


def _checkpoint(group: Group) -> Path | None:
    run = _answering(group)
    return None if run is None else run.checkpoint


def _told(groups: Sequence[Group]) -> str:
    """Which runs answered."""
    names = ", ".join(run.name for run in map(_answering, groups) if run is not None)
    scores = groups[0].scores
    return f"Answers of {names}, {threshold_label(scores)}. {data_label(scores)}."


def _other_store(store: PhraseStore, group: Group) -> str:
    same = fingerprint_of({"data": store.metadata()["fingerprint"]})
    if same == fingerprint_of(group.scores):
        return ""
    return " The photos are from another store than the one that was scored."
