"""Which of an image's possible phrases are kept: limits, balance, the smallest target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

import numpy as np

from training.data.phrase_records import PhraseRecord

LAYOUT_KINDS = frozenset({"position", "size", "ordinal"})
_ACHROMATIC = frozenset({"black", "grey", "white"})


@dataclass(frozen=True)
class PhraseLimits:
    """The most phrases of an image, by kind and in all.

    The order of `per_kind` is the order in which kinds take turns.
    """

    per_image: int = 16
    per_kind: tuple[tuple[str, int], ...] = (
        ("class", 7),
        ("colour", 4),
        ("position", 4),
        ("relation", 4),
        ("ordinal", 3),
        ("size", 2),
        ("plural", 2),
    )


DEFAULT_LIMITS = PhraseLimits()
DISCRIMINATIVE_LIMITS = PhraseLimits(
    per_image=48,
    per_kind=(
        ("position", 12),
        ("ordinal", 8),
        ("size", 6),
        ("relation", 8),
        ("colour", 4),
        ("class", 7),
        ("plural", 3),
    ),
)
"""For a store that is mixed in, so that there is more of what tells things of a class apart."""


@dataclass(frozen=True)
class Candidate:
    """A phrase before it is chosen.

    Attributes:
        target: indices of the matching instances of the class `class_name`.
        swapped_target: the same for the phrase with left and right exchanged; empty when
            nothing matches it or it is not decided.
        telling: the target is not the whole class, so the words beyond the class matter.
        anchor: the class whose only instance the phrase names to say where the target is; "" none.
    """

    kind: str
    class_name: str
    phrase: str
    target: tuple[int, ...]
    telling: bool
    swapped_target: tuple[int, ...] = ()
    anchor: str = ""


def choose(
    by_kind: Mapping[str, Sequence[Candidate]],
    limits: PhraseLimits,
    layout_limit: int | None,
    rng: Random,
) -> list[Candidate]:
    """A balanced choice: the kinds take turns, and telling phrases go first.

    `layout_limit` bounds the position, size and ordinal phrases together (None: no bound).
    """
    queues = {}
    for kind, most in limits.per_kind:
        queue = list(by_kind.get(kind, ()))
        rng.shuffle(queue)
        queue.sort(key=lambda candidate: not candidate.telling)
        if kind == "relation":
            queue = _few_plain(queue)
        elif kind == "colour":
            queue = _few_without_hue(queue)
        queues[kind] = queue[:most]
    chosen: list[Candidate] = []
    layout_left = limits.per_image if layout_limit is None else layout_limit
    while any(queues.values()) and len(chosen) < limits.per_image:
        for kind, queue in queues.items():
            if not queue or len(chosen) == limits.per_image:
                continue
            candidate = queue.pop(0)
            if kind in LAYOUT_KINDS:
                if layout_left == 0:
                    continue
                layout_left -= 1
            chosen.append(candidate)
    return chosen


def _few_plain(queue: list[Candidate]) -> list[Candidate]:
    """At most one relation that holds for all of its class: it tells nothing apart."""
    telling = [candidate for candidate in queue if candidate.telling]
    return telling + [candidate for candidate in queue if not candidate.telling][:1]


def _few_without_hue(queue: list[Candidate]) -> list[Candidate]:
    """Each of black, grey and white once at most: clothes are black too often to learn from."""
    seen: set[str] = set()
    kept = []
    for candidate in queue:
        words = _ACHROMATIC.intersection(candidate.phrase.split())
        if not words & seen:
            kept.append(candidate)
        seen |= words
    return kept


def choose_siblings(
    records: Sequence[PhraseRecord], count: int, rng: np.random.Generator
) -> list[PhraseRecord]:
    """Phrases of one image for a batch, class by class, those that tell siblings apart first.

    The classes come in random order, a class the likelier early the more telling phrases it has;
    of each come its telling phrases, then one other. What is left fills up.
    """
    groups: dict[int, list[PhraseRecord]] = {}
    for index in rng.permutation(len(records)):
        groups.setdefault(records[index].group, []).append(records[index])
    telling = {group: sum(r.discriminative for r in rows) for group, rows in groups.items()}
    order = sorted(groups, key=lambda group: -(rng.random() ** (1 / (0.2 + telling[group]))))
    chosen: list[PhraseRecord] = []
    rest: list[PhraseRecord] = []
    for group in order:
        rows = groups[group]
        plain = [record for record in rows if not record.discriminative]
        chosen += [record for record in rows if record.discriminative] + plain[:1]
        rest += plain[1:]
    return [*chosen, *rest][:count]
