"""Evaluations of runs that differ in their seed alone: mean and spread of their main numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from training.no_target import NoTargetSummary

from .goals import GOALS, Evaluation
from .groups import Spread
from .runs import fingerprint_of


def seed_lines(contents: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """A Markdown table of several files of `evaluate --json`, by name.

    Raises:
        ValueError: fewer than two, or they are not over the same data.
    """
    _check(contents)
    found = [Evaluation.of(content) for content in contents.values()]
    thresholds = dict.fromkeys(f"{each.photos.threshold:g}" for each in found)
    yield f"{len(found)} evaluations ({', '.join(contents)}), threshold {', '.join(thresholds)}."
    yield "Spread is half the distance of the largest from the smallest."
    yield ""
    yield f"| number | mean | spread | {' | '.join(contents)} |"
    yield "|---|--:|--:" + "|--:" * len(found) + "|"
    for goal in GOALS:
        numbers = [goal.number(each) for each in found]
        yield _row(goal.title, [None if each is None else each.value for each in numbers])
    for title, reports in (
        ("photos", [each.photos for each in found]),
        ("layouts", [each.layouts for each in found]),
    ):
        kinds = dict.fromkeys(kind for report in reports if report for kind in report.kinds)
        for kind in kinds:
            rows = [report.kinds.get(kind) if report else None for report in reports]
            values = [row["mean_iou"] if row else None for row in rows]
            yield _row(f"{title}, kind: {kind}", values)
        absent = [report.absent if report else None for report in reports]
        yield from _no_target_rows(f"{title}, absent classes", absent)
        no_target = [report.no_target if report else None for report in reports]
        yield from _no_target_rows(f"{title}, no target", no_target)


def _no_target_rows(title: str, summaries: Sequence[NoTargetSummary | None]) -> Iterator[str]:
    if any(summaries):
        yield _row(f"{title}: N-acc", [each["n_acc"] if each else None for each in summaries])
        yield _row(f"{title}: T-acc", [each["t_acc"] if each else None for each in summaries])
        yield _row(f"{title}: AUROC", [each["auroc"] if each else None for each in summaries])


def _row(title: str, values: Sequence[float | None]) -> str:
    known = tuple(value for value in values if value is not None)
    cells = " | ".join("" if value is None else f"{value:.3f}" for value in values)
    if not known:
        return f"| {title} |  |  | {cells} |"
    spread = Spread(known)
    return f"| {title} | {spread.mean:.3f} | {spread.half_range:.3f} | {cells} |"


def _check(contents: Mapping[str, Mapping[str, Any]]) -> None:
    if len(contents) < 2:
        raise ValueError("a spread needs two or more evaluations; give one JSON file for each seed")
    same = {name: _scored(content) for name, content in contents.items()}
    first = next(iter(same))
    for name, scored in same.items():
        if scored != same[first]:
            raise ValueError(
                f"{name} was scored on other data than {first} ({'; '.join(scored)} and "
                f"{'; '.join(same[first])}); evaluate all of them on the same stores"
            )


def _scored(content: Mapping[str, Any]) -> list[str]:
    layouts = content.get("layouts")
    parts = [("photos", content)] + ([("layouts", layouts)] if layouts else [])
    return [
        f"{name} {fingerprint_of(part)}, split {part['split']}, {part['num_phrases']} phrases"
        for name, part in parts
    ]
