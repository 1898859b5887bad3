"""What a predictor answered to each phrase, as counts of pixels, and the report made of them.

An outcome is small, plain and picklable: the processes of a distributed run score different images
and one of them makes the report of all their lists together. No mask is kept. A report does not
depend on the order of its outcomes, to the last bit.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from model.calibration import ScoreMap
from training.calibration import Answer, Calibration, calibrate
from training.data.lmdb_store import PhraseRecord, decode_rle
from training.data.phrasecut_subsets import SUBSETS
from training.evaluation_report import (
    Discriminative,
    EvaluationReport,
    Probes,
    SwapSummary,
    TextProbe,
)
from training.metrics import (
    ALL,
    Mask,
    ScoreSummary,
    SegmentationScores,
    iou_of,
    mask_overlap,
    size_band,
)
from training.no_target import Judged, NoTargetSummary, no_target_summary
from training.picks import Pick, pick_summaries

BLANK = ""
"""The text of the blank probe."""

CSV_COLUMNS = ("image_id", "task_id", "phrase", "kind", "intersection", "union", "iou", "empty")

_KIND, _SOURCE, _SIZE, _SUBSET = "kind/", "source/", "size/", "subset/"
_DISCRIMINATIVE = "discriminative"


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two masks compared, in pixels of the photo."""

    intersection: int
    union: int

    @property
    def iou(self) -> float:
        """Intersection over union, 0 where they do not meet."""
        return iou_of(self.intersection, self.union)


@dataclass(frozen=True, slots=True)
class SwapOutcome:
    """A phrase beside its form with "left" and "right" exchanged.

    overlap: of the two answered masks. empty_masks: how many of the two are empty. truth: of the
    exchanged form's mask with its own true mask; None where that is not known. original: of that
    mask with the true mask of the phrase as it was; None where the two true masks are one.
    """

    overlap: Overlap
    empty_masks: int
    truth: Overlap | None
    original: Overlap | None = None


@dataclass(frozen=True, slots=True)
class ProbeOutcome:
    """The same target, asked for with other texts; `swap` is None where no side is named."""

    class_name: Overlap
    blank: Overlap
    swap: SwapOutcome | None


@dataclass(frozen=True, slots=True)
class PhraseOutcome:
    """How one phrase of a photo was answered, at the photo's original size.

    Attributes:
        image_id, index: the photo, and the phrase's place in the photo's list; together unique.
        task_id, phrase, kind, discriminative, subsets: as in the store's record.
        source: the photo's.
        size: the target's band, "s_small", "s_mid" or "s_large".
        predicted, target: pixels of the answered and of the true mask.
        overlap: of the two.
        probes: None where the probes were not asked.
        agreement: how sure the map was of its mask (`model.calibration`); None where not known.
        pick: whether the right thing is hit; None where the phrase does not choose among things.
    """

    image_id: str
    index: int
    task_id: str
    phrase: str
    kind: str
    source: str
    size: str
    discriminative: bool
    subsets: tuple[str, ...]
    predicted: int
    target: int
    overlap: Overlap
    probes: ProbeOutcome | None
    agreement: float | None = None
    pick: Pick | None = None

    @property
    def empty(self) -> bool:
        """Whether the answer is an empty mask."""
        return self.predicted == 0


def phrase_outcomes(
    image_id: str,
    source: str,
    phrases: Sequence[PhraseRecord],
    masks: Mapping[str, Mask],
    probes: bool,
) -> list[PhraseOutcome]:
    """Score one photo.

    `masks`: by text the answered mask, bool (H, W) at the photo's size; with `probes` it holds the
    class names, the swapped forms and `BLANK` too.
    """
    outcomes = []
    for index, phrase in enumerate(phrases):
        target, mask = decode_rle(phrase.rle), masks[phrase.phrase]
        outcomes.append(
            PhraseOutcome(
                image_id=image_id,
                index=index,
                task_id=phrase.task_id,
                phrase=phrase.phrase,
                kind=phrase.kind,
                source=source,
                size=size_band(target),
                discriminative=phrase.discriminative,
                subsets=tuple(phrase.subsets),
                predicted=int(mask.sum()),
                target=int(target.sum()),
                overlap=_overlap(mask, target),
                probes=_probe_outcome(phrase, target, masks) if probes else None,
            )
        )
    return outcomes


def report_of(
    outcomes: Sequence[PhraseOutcome],
    split: str,
    threshold: float | None,
    absent: Sequence[PhraseOutcome] = (),
) -> EvaluationReport:
    """The report of a split's outcomes, from one process or from many, in any order.

    `threshold` is what the masks were made with, None where they came from files. `absent`: of
    `absent_classes.absent_outcomes`. Where phrases have no target, the means are over the others;
    only PhraseCut's official rule counts them, as 0.
    Raises ValueError for no outcomes, for a phrase that is there twice (a sampler that pads its
    processes to equal lengths does that), and where only some have probes.
    """
    _check(outcomes)
    official = any(set(each.subsets) & set(SUBSETS) for each in outcomes)
    counted = [each for each in outcomes if official or each.target]
    scores, answered = SegmentationScores(), [each.probes for each in outcomes]
    for each in counted:
        groups = [_KIND + each.kind, _SOURCE + each.source, _SIZE + each.size]
        groups += [_SUBSET + subset for subset in each.subsets]
        groups += [_DISCRIMINATIVE] * each.discriminative
        scores.add_counts(each.overlap.intersection, each.overlap.union, groups)
    calibration = _calibration(outcomes)
    score_map = None if calibration is None else ScoreMap.of(calibration["knots"])
    return EvaluationReport(
        split=split,
        threshold=threshold,
        num_images=len({each.image_id for each in outcomes}),
        num_phrases=len(outcomes),
        overall=scores.summary(),
        kinds=scores.summaries(_KIND),
        sources=scores.summaries(_SOURCE),
        sizes=scores.summaries(_SIZE),
        discriminative=scores.summary(_DISCRIMINATIVE),
        subsets=_subset_scores(scores),
        empty_share=sum(each.empty for each in outcomes) / len(outcomes),
        no_target=no_target_summary([_judged(each) for each in outcomes], score_map),
        probes=_probe_report(counted) if None not in answered else None,
        calibration=calibration,
        absent=_absent(absent, outcomes, score_map),
        picks=pick_summaries((each.kind, each.pick) for each in outcomes if each.pick),
    )


def write_csv(outcomes: Iterable[PhraseOutcome], path: Path) -> None:
    """One row for each phrase; pixels at the photo's size, IoU unrounded, empty as 0 or 1."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(CSV_COLUMNS)
        for each in outcomes:
            pixels = (each.overlap.intersection, each.overlap.union)
            named = (each.image_id, each.task_id, each.phrase, each.kind)
            writer.writerow([*named, *pixels, repr(each.overlap.iou), int(each.empty)])


def _check(outcomes: Sequence[PhraseOutcome]) -> None:
    if not outcomes:
        raise ValueError("there is nothing to report: no phrase was scored")
    seen = set()
    for each in outcomes:
        if (each.image_id, each.index) in seen:
            raise ValueError(
                f"phrase {each.index} of image {each.image_id!r} was scored twice; give every "
                "process images of its own, for instance ids[rank::processes]"
            )
        seen.add((each.image_id, each.index))
    if len({each.probes is None for each in outcomes}) > 1:
        raise ValueError("some outcomes have probes and some have none; score all of them alike")


def _subset_scores(scores: SegmentationScores) -> dict[str, ScoreSummary]:
    """PhraseCut's subsets all and in their order, other names sorted."""
    found = scores.summaries(_SUBSET)
    if found.keys() & set(SUBSETS):
        official = {name: scores.summary(_SUBSET + name) for name in SUBSETS}
        return {
            **official,
            ALL: scores.summary(),
            **{k: found[k] for k in found if k not in official},
        }
    return found


def _calibration(outcomes: Sequence[PhraseOutcome]) -> Calibration | None:
    return calibrate(
        [
            Answer(each.image_id, each.agreement, each.overlap.iou)
            for each in outcomes
            if each.agreement is not None and not each.empty
        ]
    )


def _absent(
    absent: Sequence[PhraseOutcome],
    outcomes: Sequence[PhraseOutcome],
    score_map: ScoreMap | None,
) -> NoTargetSummary | None:
    photos = {each.image_id for each in absent}
    beside = [each for each in outcomes if each.image_id in photos and each.target]
    return no_target_summary([_judged(each) for each in (*absent, *beside)], score_map)


def _judged(each: PhraseOutcome) -> Judged:
    overlap = each.overlap
    return Judged(each.target > 0, each.empty, overlap.intersection, overlap.union, each.agreement)


def _overlap(first: Mask, second: Mask) -> Overlap:
    return Overlap(*mask_overlap(first, second))


def _probe_outcome(phrase: PhraseRecord, target: Mask, masks: Mapping[str, Mask]) -> ProbeOutcome:
    swap = None
    if phrase.swapped is not None:
        mask, swapped = masks[phrase.phrase], masks[phrase.swapped]
        truth = None if phrase.swapped_rle is None else decode_rle(phrase.swapped_rle)
        same = truth is not None and bool((truth == target).all())
        swap = SwapOutcome(
            overlap=_overlap(mask, swapped),
            empty_masks=int(not mask.any()) + int(not swapped.any()),
            truth=None if truth is None else _overlap(swapped, truth),
            original=None if truth is None or same else _overlap(swapped, target),
        )
    return ProbeOutcome(
        class_name=_overlap(masks[phrase.class_name], target),
        blank=_overlap(masks[BLANK], target),
        swap=swap,
    )


def _probe_report(outcomes: Sequence[PhraseOutcome]) -> Probes:
    class_names, blank = SegmentationScores(), SegmentationScores()
    whole, by_class = SegmentationScores(), SegmentationScores()  # of discriminative phrases
    swaps: dict[str, list[tuple[Overlap, SwapOutcome]]] = defaultdict(list)
    for each in outcomes:
        assert each.probes is not None
        if each.discriminative and each.target:
            for scores, overlap in ((whole, each.overlap), (by_class, each.probes.class_name)):
                scores.add_counts(overlap.intersection, overlap.union, [_KIND + each.kind])
        for scores, overlap in ((class_names, each.probes.class_name), (blank, each.probes.blank)):
            scores.add_counts(overlap.intersection, overlap.union, [_KIND + each.kind])
        if each.probes.swap is not None:
            swaps[each.kind].append((each.overlap, each.probes.swap))
    return Probes(
        class_name_only=_text_probe(class_names),
        blank=_text_probe(blank),
        discriminative=Discriminative(_text_probe(whole), _text_probe(by_class)),
        swap=_swap_summary([pair for pairs in swaps.values() for pair in pairs]),
        swap_kinds={kind: _swap_summary(pairs) for kind, pairs in sorted(swaps.items())},
    )


def _text_probe(scores: SegmentationScores) -> TextProbe:
    return TextProbe(scores.summary(), scores.summaries(_KIND))


def _swap_summary(pairs: Sequence[tuple[Overlap, SwapOutcome]]) -> SwapSummary:
    """Of pairs of the original's overlap with its truth, and its exchanged form."""
    num = len(pairs)
    overlaps = [swap.overlap.iou for _, swap in pairs if swap.empty_masks == 0]
    truths = [(original.iou, swap.truth.iou) for original, swap in pairs if swap.truth is not None]
    moved = [(s.truth.iou, s.original.iou) for _, s in pairs if s.truth and s.original]
    hits = [float(own > other) for own, other in moved]
    return SwapSummary(
        num=num,
        overlap=_mean(overlaps),
        num_overlap=len(overlaps),
        one_empty_share=sum(swap.empty_masks == 1 for _, swap in pairs) / max(num, 1),
        both_empty_share=sum(swap.empty_masks == 2 for _, swap in pairs) / max(num, 1),
        num_swapped=len(truths),
        original_mean_iou=_mean([original for original, _ in truths]),
        swapped_mean_iou=_mean([swapped for _, swapped in truths]),
        num_moved=len(moved),
        hits_share=_mean(hits),
    )


def _mean(values: Sequence[float]) -> float | None:
    return math.fsum(values) / len(values) if values else None
