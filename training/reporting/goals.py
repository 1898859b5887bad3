"""What was asked of the default model, and whether an evaluation's numbers reach it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from training.evaluation_report import EvaluationReport
from training.metrics import ScoreSummary

FEWEST = 20
"""Phrases below which a goal is not judged: one phrase would move the mean by five points."""
NOT_MEASURED = "not measured"


class Evaluation(NamedTuple):
    """Reports on the photos and, where they were scored too, on the layouts."""

    photos: EvaluationReport
    layouts: EvaluationReport | None

    @classmethod
    def of(cls, content: Mapping[str, Any]) -> Evaluation:
        """From what `evaluate --json` wrote. Raises ValueError where that lacks something."""
        layouts = content.get("layouts")
        return cls(
            EvaluationReport.from_dict(content),
            None if layouts is None else EvaluationReport.from_dict(layouts),
        )


class Number(NamedTuple):
    """num: the phrases that it rests on. which: of a worst kind, its name."""

    value: float
    num: int
    which: str = ""


@dataclass(frozen=True)
class Goal:
    """A bound on a number of the evaluation; `number` answers None where it was not measured."""

    title: str
    bound: float
    number: Callable[[Evaluation], Number | None]
    at_most: bool = False
    gain: bool = False

    def verdict(self, number: Number | None) -> str:
        """In a word or two."""
        if number is None:
            return NOT_MEASURED
        if number.num < FEWEST:
            return f"too few phrases ({number.num})"
        if self.at_most:
            return "yes" if number.value <= self.bound else "no"
        return "yes" if number.value >= self.bound else "no"

    def asked(self) -> str:
        """The bound as it is written."""
        return f"{'at most' if self.at_most else 'at least'} {self.text(self.bound)}"

    def text(self, value: float) -> str:
        """A number as it is written, with a sign where it is a difference."""
        return f"{value:+.3f}" if self.gain else f"{value:.3f}"


def _mean_iou(summary: ScoreSummary | None) -> Number | None:
    return Number(summary["mean_iou"], summary["num"]) if summary and summary["num"] else None


def _gain(kind: str | None) -> Callable[[Evaluation], Number | None]:
    def number(found: Evaluation) -> Number | None:
        if found.photos.probes is None:
            return None
        both = found.photos.probes.discriminative
        if kind is None:
            whole, only = both.whole.overall, both.class_name_only.overall
        elif kind in both.whole.kinds:
            whole, only = both.whole.kinds[kind], both.class_name_only.kinds[kind]
        else:
            return None
        return Number(whole["mean_iou"] - only["mean_iou"], whole["num"])

    return number


def _swap(value: str, num: str) -> Callable[[Evaluation], Number | None]:
    def number(found: Evaluation) -> Number | None:
        if found.photos.probes is None:
            return None
        swap: Mapping[str, Any] = found.photos.probes.swap
        return None if swap[value] is None else Number(swap[value], swap[num])

    return number


def _blank(found: Evaluation) -> Number | None:
    return None if found.photos.probes is None else _mean_iou(found.photos.probes.blank.overall)


def _layouts(found: Evaluation) -> Number | None:
    return None if found.layouts is None else _mean_iou(found.layouts.overall)


def _worst_layouts(found: Evaluation) -> Number | None:
    if found.layouts is None or not found.layouts.kinds:
        return None
    name, worst = min(found.layouts.kinds.items(), key=lambda row: row[1]["mean_iou"])
    return Number(worst["mean_iou"], worst["num"], name)


GOALS: tuple[Goal, ...] = (
    Goal("gain over the class name", 0.10, _gain(None), gain=True),
    *(
        Goal(f"gain over the class name, {kind}", 0.05, _gain(kind), gain=True)
        for kind in ("colour", "position", "size", "relation")
    ),
    Goal("left and right exchanged, overlap", 0.35, _swap("overlap", "num_overlap"), at_most=True),
    Goal("left and right exchanged, hits", 0.5, _swap("hits_share", "num_moved")),
    Goal("class phrases", 0.52, lambda found: _mean_iou(found.photos.kinds.get("class"))),
    Goal("all phrases", 0.45, lambda found: _mean_iou(found.photos.overall)),
    Goal("COCO photos", 0.30, lambda found: _mean_iou(found.photos.sources.get("coco"))),
    Goal("blank text (an empty answer has 0)", 0.01, _blank, at_most=True),
    Goal("layouts", 0.70, _layouts),
    Goal("layouts, worst kind", 0.60, _worst_layouts),
)


def goal_lines(found: Evaluation) -> Iterator[str]:
    """The goals as a Markdown table."""
    yield "| goal (mean IoU unless it says otherwise) | asked | measured | reached |"
    yield "|---|--:|--:|---|"
    for goal in GOALS:
        number = goal.number(found)
        shown = "" if number is None else goal.text(number.value)
        which = f" ({number.which})" if number and number.which else ""
        yield f"| {goal.title}{which} | {goal.asked()} | {shown} | {goal.verdict(number)} |"
