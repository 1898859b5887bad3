"""Runs that differ in their seed alone, together: mean and spread; and what sets groups apart."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

from .runs import THRESHOLDS, Run, fingerprint_of
from .variants import OTHER, SWITCHES, VARIANTS, flat, is_raf

METRICS: tuple[str, ...] = ("mean_iou", *THRESHOLDS, "cum_iou")
"""Mean IoU, precision at the five thresholds, cumulative IoU."""

_NOT_SETTINGS = frozenset(
    {
        "data.store",  # its content is compared instead, by the scores' fingerprint
        "data.workers",
        "run.out",
        "run.seed",
        "run.log_every",
        "run.save_every",
        "run.keep",
    }
)


@dataclass(frozen=True)
class Spread:
    """A score over seeds, in the unit of its values."""

    values: tuple[float, ...]

    @property
    def num(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def low(self) -> float:
        return min(self.values)

    @property
    def high(self) -> float:
        return max(self.values)

    @property
    def half_range(self) -> float:
        return (self.high - self.low) / 2

    def to_dict(self) -> dict[str, Any]:
        """Everything, the sample standard deviation too (None for one value)."""
        return {
            "values": list(self.values),
            "mean": self.mean,
            "min": self.low,
            "max": self.high,
            "half_range": self.half_range,
            "std": statistics.stdev(self.values) if self.num > 1 else None,
        }


@dataclass(frozen=True, eq=False)
class Group:
    """Scored runs of one variant and the same settings.

    differences: what else sets it apart from the other groups, "optim.steps 100, not 200"; such a
        group is shown, but no step of the ablation is measured against it.
    """

    variant: str
    label: str
    runs: tuple[Run, ...]
    differences: tuple[str, ...]

    @cached_property
    def spreads(self) -> dict[str, Spread]:
        """Per cent, by the names of `METRICS`."""
        return {
            metric: Spread(tuple(percent(run.scores or {}, metric) for run in self.runs))
            for metric in METRICS
        }

    @property
    def empty_masks(self) -> Spread | None:
        """Phrases answered with nothing, per cent; None where the scores do not say."""
        shares = [(run.scores or {}).get("empty_share") for run in self.runs]
        known = tuple(100 * float(share) for share in shares if share is not None)
        return Spread(known) if known else None

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(run.seed for run in self.runs)

    @property
    def scores(self) -> Mapping[str, Any]:
        """Of the first run; split, threshold and data are those of all."""
        scores = self.runs[0].scores
        assert scores is not None
        return scores


@dataclass(frozen=True)
class Gain:
    """What a step of the ablation adds, in percentage points, by seed where seeds pair up.

    paired: whether each value is the difference of two runs with one seed; otherwise there is one
        value, the difference of the means.
    """

    variant: str
    metric: str
    spread: Spread
    paired: bool


def percent(scores: Mapping[str, Any], metric: str) -> float:
    """A score of the overall group, 0..100."""
    overall = scores["all"]
    value = overall["precision"][metric] if metric in THRESHOLDS else overall[metric]
    return 100 * float(value)


def group_runs(runs: Sequence[Run]) -> tuple[list[Group], list[str]]:
    """Groups of the finished, scored runs in the ablation's order, and lines about the rest."""
    usable = [run for run in runs if run.finished and run.scores is not None]
    usual = _usual_settings(usable)
    members: dict[tuple[str, str, tuple[str, ...]], list[Run]] = {}
    notes: list[str] = []
    for run in usable:
        key = (run.variant, run.label, _differences(run, usual))
        group = members.setdefault(key, [])
        if run.seed in {other.seed for other in group}:
            notes.append(
                f"{run.name}: a second run of the same settings and seed {run.seed}; left out"
            )
        else:
            group.append(run)
    groups = [
        Group(variant, label, tuple(sorted(group, key=lambda run: run.seed)), differences)
        for (variant, label, differences), group in members.items()
    ]
    order = (*VARIANTS, OTHER)
    groups.sort(key=lambda group: (order.index(group.variant), len(group.differences)))
    notes += [
        f"{group.label} ({_names(group.runs)}) differs from the other runs in more than switches "
        f"and seed: {'; '.join(group.differences)}"
        for group in groups
        if group.differences
    ]
    return groups, notes


def comparable(groups: Iterable[Group]) -> list[Group]:
    """The groups of Table 2's variants that differ in their switches alone, in its order."""
    return [group for group in groups if group.variant in VARIANTS and not group.differences]


def gains(groups: Iterable[Group], metrics: Sequence[str]) -> list[Gain]:
    """What each step adds to the one before it, for neighbouring rows that are both there."""
    by_variant = {group.variant: group for group in comparable(groups)}
    names = list(VARIANTS)
    found = []
    for before, after in pairwise(names):
        if before in by_variant and after in by_variant:
            pair = by_variant[before], by_variant[after]
            found += [_gain(*pair, metric) for metric in metrics]
    return found


def uneven_seeds(groups: Iterable[Group]) -> list[str]:
    """A line where the rows of the ablation do not rest on the same seeds."""
    rows = comparable(groups)
    if len({group.seeds for group in rows}) < 2:
        return []
    listed = "; ".join(f"{group.label}: {_listed(group.seeds)}" for group in rows)
    return [f"The rows rest on different seeds ({listed})."]


def _gain(before: Group, after: Group, metric: str) -> Gain:
    first = dict(zip(before.seeds, before.spreads[metric].values, strict=True))
    second = dict(zip(after.seeds, after.spreads[metric].values, strict=True))
    shared = sorted(first.keys() & second.keys())
    values = tuple(second[seed] - first[seed] for seed in shared)
    if not values:
        values = (after.spreads[metric].mean - before.spreads[metric].mean,)
    return Gain(after.variant, metric, Spread(values), paired=bool(shared))


def _settings(run: Run) -> dict[str, Any]:
    """Everything that decides a run but its switches and its seed."""
    settings = {key: value for key, value in flat(run.config).items() if key not in _NOT_SETTINGS}
    kept = {
        key: value for key, value in settings.items() if not key.startswith(("model.", "loss."))
    }
    kept["model.init"] = settings.get("model.init")
    hidden = {"preset", *SWITCHES}
    model = {key: value for key, value in run.model.to_dict().items() if key not in hidden}
    kept |= flat(model, "model.")
    if is_raf(run.loss):
        kept |= flat(vars(run.loss), "loss.")
    scores = run.scores or {}
    kept |= {
        "the scored data": fingerprint_of(scores),
        "the scored split": scores.get("split"),
        "the number of scored phrases": scores.get("num_phrases"),
        "the mask threshold": scores.get("threshold"),
    }
    return kept


def _usual_settings(runs: Sequence[Run]) -> dict[str, Any]:
    """Each setting's most frequent value among the runs that have it; of equals the first."""
    seen: dict[str, Counter[Any]] = {}
    for run in runs:
        for key, value in _settings(run).items():
            seen.setdefault(key, Counter())[value] += 1
    return {key: counts.most_common(1)[0][0] for key, counts in seen.items()}


def _differences(run: Run, usual: Mapping[str, Any]) -> tuple[str, ...]:
    shown: Callable[[Any], str] = lambda value: "unset" if value is None else str(value)  # noqa: E731
    return tuple(
        f"{key} {shown(value)}, not {shown(usual[key])}"
        for key, value in sorted(_settings(run).items())
        if value != usual[key]
    )


def _names(runs: Iterable[Run]) -> str:
    return ", ".join(run.name for run in runs)


def _listed(seeds: Iterable[int]) -> str:
    return ", ".join(str(seed) for seed in seeds)
