"""Is the right thing hit? Of all things of its class, the one that holds most of the mask."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypedDict

import numpy as np

from training.data.phrase_records import ObjectRecord, PhraseRecord, decode_rle
from training.metrics import ALL, Mask


class Pick(NamedTuple):
    """hit: one of the meant things holds most of the mask. chance: of a thing drawn blindly."""

    hit: bool
    chance: float


class PickSummary(TypedDict):
    """num: phrases that mean some of several things. hits, chance: shares of them, 0..1."""

    num: int
    hits: float
    chance: float


def pick_of(
    phrase: PhraseRecord, mask: Mask, objects: Sequence[ObjectRecord] | None
) -> Pick | None:
    """Which thing a mask (H, W) picks; None where the phrase does not choose among things.

    A mask that meets none of them hits nothing. `objects`: all of the photo, None where the store
    does not tell them apart.
    """
    if objects is None or not phrase.matched:
        return None
    siblings = [place for place, each in enumerate(objects) if each.group == phrase.group]
    if len(phrase.matched) >= len(siblings):
        return None
    shares = [np.count_nonzero(decode_rle(objects[place].rle) & mask) for place in siblings]
    best = int(np.argmax(shares))
    hit = shares[best] > 0 and siblings[best] in phrase.matched
    return Pick(bool(hit), len(phrase.matched) / len(siblings))


def pick_summaries(picks: Iterable[tuple[str, Pick]]) -> dict[str, PickSummary]:
    """Of all pairs of a kind and a pick under "all", and by kind, sorted; {} for none."""
    kinds: dict[str, list[Pick]] = defaultdict(list)
    for kind, pick in picks:
        kinds[kind].append(pick)
    if not kinds:
        return {}
    everything = [pick for found in kinds.values() for pick in found]
    return {ALL: _summary(everything), **{kind: _summary(kinds[kind]) for kind in sorted(kinds)}}


def pick_lines(summaries: Mapping[str, PickSummary]) -> Iterator[str]:
    """A Markdown table."""
    yield "Phrases that mean some of several things of a class: how often the thing that holds most"
    yield "of the mask is one of them, and how often one that is drawn blindly would be."
    yield ""
    yield "| phrases that choose | number | right thing | by chance |"
    yield "|---|--:|--:|--:|"
    for name, found in summaries.items():
        title = "**all**" if name == ALL else f"kind: {name}"
        yield f"| {title} | {found['num']} | {found['hits']:.1%} | {found['chance']:.1%} |"


def _summary(picks: Sequence[Pick]) -> PickSummary:
    chances = sorted(pick.chance for pick in picks)  # so that their order does not matter
    return PickSummary(
        num=len(picks),
        hits=sum(pick.hit for pick in picks) / len(picks),
        chance=sum(chances) / len(picks),
    )
