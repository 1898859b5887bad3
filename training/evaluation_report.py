"""What an evaluation answers, as JSON and as a Markdown page for a person."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict, cast

from training.calibration import Calibration
from training.metrics import ALL, PRECISION_THRESHOLDS, ScoreSummary
from training.no_target import NoTargetSummary, no_target_line
from training.picks import PickSummary, pick_lines

_PHRASECUT_LEGEND = (
    "c: the category, by its rank or as one of COCO's; i: 1, 2 to 4, or more instances; p: what "
    "the phrase holds (a + where it takes that to tell the target apart); s: target below 2 %, "
    "between, above 20 % of the image; a: the rank of the best known attribute; d: whether COCO "
    "has the photo. Each subset stands for itself; many overlap."
)


class SwapSummary(TypedDict):
    """What exchanging "left" and "right" in a phrase does to its mask.

    num: phrases that have a swapped form.
    overlap: mean IoU between the masks of a phrase and of its swapped form, over the pairs where
        neither mask is empty; near 1 the two words are ignored, near 0 they decide. None where
        no pair qualifies.
    num_overlap: those pairs. An empty mask would make the swap look perfect, so the pairs left
        out are reported: `one_empty_share` and `both_empty_share`, of `num`.
    num_swapped, original_mean_iou, swapped_mean_iou: over the pairs where the swapped form has a
        true mask too, the mean IoU of either phrase's mask with its own truth; None where none.
    num_moved, hits_share: of the pairs whose two true masks differ, the share in which the swapped
        phrase's mask fits its own truth better than the original's: it hits the sibling.
    """

    num: int
    overlap: float | None
    num_overlap: int
    one_empty_share: float
    both_empty_share: float
    num_swapped: int
    original_mean_iou: float | None
    swapped_mean_iou: float | None
    num_moved: int
    hits_share: float | None


@dataclass(frozen=True)
class TextProbe:
    """Scores against the original targets when every phrase is replaced by another text."""

    overall: ScoreSummary
    kinds: dict[str, ScoreSummary]

    def to_dict(self) -> dict[str, Any]:
        return {"all": self.overall, "kinds": self.kinds}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> TextProbe:
        return cls(content["all"], content["kinds"])


@dataclass(frozen=True)
class Discriminative:
    """Phrases whose target is a proper subset of its class: only their words tell it apart.

    whole, class_name_only: scores of the phrase itself and of its class name alone.
    """

    whole: TextProbe
    class_name_only: TextProbe

    def to_dict(self) -> dict[str, Any]:
        return {"whole": self.whole.to_dict(), "class_name_only": self.class_name_only.to_dict()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Discriminative:
        whole, only = content["whole"], content["class_name_only"]
        return cls(TextProbe.from_dict(whole), TextProbe.from_dict(only))


@dataclass(frozen=True)
class Probes:
    """Does the model listen to the words? Each probe overall and for each kind of phrase."""

    class_name_only: TextProbe
    blank: TextProbe
    discriminative: Discriminative
    swap: SwapSummary
    swap_kinds: dict[str, SwapSummary]

    def to_dict(self) -> dict[str, Any]:
        return {
            "class_name_only": self.class_name_only.to_dict(),
            "blank": self.blank.to_dict(),
            "discriminative": self.discriminative.to_dict(),
            "swap": {**self.swap, "kinds": self.swap_kinds},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Probes:
        swap = dict(content["swap"])
        kinds = swap.pop("kinds")
        return cls(
            class_name_only=TextProbe.from_dict(content["class_name_only"]),
            blank=TextProbe.from_dict(content["blank"]),
            discriminative=Discriminative.from_dict(content["discriminative"]),
            swap=cast("SwapSummary", swap),
            swap_kinds=kinds,
        )


@dataclass(frozen=True)
class EvaluationReport:
    """Scores over all phrases of a split.

    overall is "all" in the JSON form. kinds, sources, sizes (s_small, s_mid, s_large) partition
    the phrases that have a target, in PhraseCut all of them; discriminative are those whose target
    is a proper subset of its class in the photo. subsets: the data set's own, {} where it has none;
    they may overlap. PhraseCut has always all of `phrasecut_subsets.SUBSETS`, in that order.
    empty_share: of all phrases, those answered with an empty mask. no_target: None where every
    phrase has a target. absent: made phrases without a target (`absent_classes`) beside the split's
    own phrases on the same photos; None where none were asked. picks: under "all" and by kind
    whether the right thing is hit; {} where no phrase chooses among things. probes: None where not
    asked for. calibration: None where the predictor does not say how sure it is, or too few answers
    do. threshold: None where the masks came from files.
    """

    split: str
    threshold: float | None
    num_images: int
    num_phrases: int
    overall: ScoreSummary
    kinds: dict[str, ScoreSummary]
    sources: dict[str, ScoreSummary]
    sizes: dict[str, ScoreSummary]
    discriminative: ScoreSummary
    subsets: dict[str, ScoreSummary]
    empty_share: float
    no_target: NoTargetSummary | None
    probes: Probes | None
    calibration: Calibration | None = None
    absent: NoTargetSummary | None = None
    picks: dict[str, PickSummary] = field(default_factory=dict)

    @property
    def mean_iou(self) -> float:
        return self.overall["mean_iou"]

    @property
    def cum_iou(self) -> float:
        return self.overall["cum_iou"]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, floats unrounded."""
        return {
            "split": self.split,
            "threshold": self.threshold,
            "num_images": self.num_images,
            "num_phrases": self.num_phrases,
            "all": self.overall,
            "kinds": self.kinds,
            "sources": self.sources,
            "sizes": self.sizes,
            "discriminative": self.discriminative,
            "subsets": self.subsets,
            "empty_share": self.empty_share,
            "no_target": self.no_target,
            "absent": self.absent,
            "picks": self.picks,
            "probes": None if self.probes is None else self.probes.to_dict(),
            "calibration": self.calibration,
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> EvaluationReport:
        """What `to_dict` made, here or in an older version, and other keys beside it.

        Raises:
            ValueError: something is missing.
        """
        renamed = {"overall": "all"}
        newer: dict[str, Any] = {"absent": None, "picks": {}}
        try:
            values = {
                each.name: content[renamed.get(each.name, each.name)]
                for each in fields(cls)
                if each.name not in newer
            }
            probes = values["probes"]
            values["probes"] = None if probes is None else Probes.from_dict(probes)
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"these are not an evaluation's scores ({error!r}); make them with "
                "`python -m training evaluate ... --json FILE`"
            ) from error
        known = {name: content.get(name, default) for name, default in newer.items()}
        return cls(**values, **known)

    def to_markdown(self) -> str:
        """The same as tables, in per cent where the column says so."""
        given = "masks from files" if self.threshold is None else f"threshold {self.threshold:g}"
        lines = [
            f"Split `{self.split}`: {self.num_phrases} phrases on {self.num_images} images, "
            f"{given}, {self.empty_share:.1%} of the masks empty.",
            "",
        ]
        if ALL in self.subsets:  # PhraseCut's, which hold its kinds and sizes too
            lines += [*_score_table("subset", self.subsets.items()), "", _PHRASECUT_LEGEND]
        else:
            lines += _score_table("phrases", self._rows())
        lines += self._no_target_lines()
        if self.picks:
            lines += ["", *pick_lines(self.picks)]
        if self.probes is not None:
            lines += ["", *_probe_lines(self.probes, self.overall, self.kinds)]
        if self.calibration is not None:
            lines += ["", *_calibration_lines(self.calibration)]
        return "\n".join(lines) + "\n"

    def _no_target_lines(self) -> Iterator[str]:
        if self.no_target is not None:
            yield ""
            yield no_target_line(self.no_target, "phrases have no target", "others")
            if ALL in self.subsets:
                yield "In the tables such a phrase counts 0, which is PhraseCut's rule."
            else:
                yield "The tables leave such phrases out."
        if self.absent is not None:
            yield ""
            yield no_target_line(
                self.absent,
                "further phrases name a class that is not in its photo",
                "phrases about the same photos",
            )

    def _rows(self) -> Iterator[tuple[str, ScoreSummary]]:
        yield "**all**", self.overall
        groups = [("kind", self.kinds), ("size", self.sizes), ("source", self.sources)]
        for title, group in [*groups, ("subset", self.subsets)]:
            if len(group) > 1 or title != "source":  # a single source is "all" once more
                for name, summary in group.items():
                    yield f"{title}: {name}", summary
        if self.discriminative["num"]:
            yield "discriminative", self.discriminative


def _calibration_lines(found: Calibration) -> Iterator[str]:
    yield (
        f"Score as the expected IoU of {found['num']} answers that are not empty, from maps fitted "
        f"on other images: {found['error']:.3f} off on average over the rows below (without a map "
        f"{found['raw_error']:.3f}), correlation with the IoU {found['correlation']:.2f}."
    )
    yield ""
    yield "| answers | mean score | mean IoU |"
    yield "|--:|--:|--:|"
    for row in found["bins"]:
        yield f"| {row['num']} | {row['score']:.3f} | {row['iou']:.3f} |"


def _score_table(title: str, rows: Iterable[tuple[str, ScoreSummary]]) -> Iterator[str]:
    precisions = " | ".join(f"P@{threshold}" for threshold in PRECISION_THRESHOLDS)
    yield f"| {title} | number | mean IoU | cumulative IoU | {precisions} |"
    yield "|---|--:|--:|--:" + "|--:" * len(PRECISION_THRESHOLDS) + "|"
    for name, summary in rows:
        scores = [summary["mean_iou"], summary["cum_iou"], *summary["precision"].values()]
        cells = " | ".join(f"{score:.3f}" if summary["num"] else "" for score in scores)
        yield f"| {name} | {summary['num']} | {cells} |"


def _probe_lines(
    probes: Probes, overall: ScoreSummary, kinds: Mapping[str, ScoreSummary]
) -> Iterator[str]:
    yield "Mean IoU when the phrase is replaced; equal numbers mean that its words are ignored."
    yield ""
    yield "| phrases | whole phrase | class name only | blank text |"
    yield "|---|--:|--:|--:|"
    class_only, blank = probes.class_name_only, probes.blank
    rows = [("**all**", overall, class_only.overall, blank.overall)]
    rows += [
        (f"kind: {kind}", summary, class_only.kinds[kind], blank.kinds[kind])
        for kind, summary in kinds.items()
    ]
    for name, *summaries in rows:
        scores = " | ".join(f"{summary['mean_iou']:.3f}" for summary in summaries)
        yield f"| {name} | {scores} |"
    yield ""
    yield from _discriminative_lines(probes.discriminative)
    yield 'Left and right exchanged: "overlap" is the IoU of the two answered masks (low is good),'
    yield "over the pairs where neither is empty; the mean IoUs are with the true masks of either,"
    yield 'and "hits" is how often the exchanged phrase\'s mask fits its own truth better.'
    yield ""
    yield "| phrases | pairs | overlap | one empty | both empty | original | exchanged | hits |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    yield _swap_row("**all**", probes.swap)
    for kind, swap in probes.swap_kinds.items():
        yield _swap_row(f"kind: {kind}", swap)


def _swap_row(name: str, swap: SwapSummary) -> str:
    empty = f"{swap['one_empty_share']:.1%} | {swap['both_empty_share']:.1%}"
    truths = f"{_number(swap['original_mean_iou'])} | {_number(swap['swapped_mean_iou'])}"
    hits = "none" if swap["hits_share"] is None else f"{swap['hits_share']:.1%}"
    return f"| {name} | {swap['num']} | {_number(swap['overlap'])} | {empty} | {truths} | {hits} |"


def _discriminative_lines(found: Discriminative) -> Iterator[str]:
    if not found.whole.overall["num"]:
        return
    yield "Phrases whose target is a proper subset of its class, whole and by the class name alone."
    yield ""
    yield "| discriminative phrases | number | whole phrase | class name only | gain |"
    yield "|---|--:|--:|--:|--:|"
    rows = [("**all**", found.whole.overall, found.class_name_only.overall)]
    rows += [
        (f"kind: {kind}", summary, found.class_name_only.kinds[kind])
        for kind, summary in found.whole.kinds.items()
    ]
    for name, whole, only in rows:
        gain = whole["mean_iou"] - only["mean_iou"]
        scores = f"{whole['mean_iou']:.3f} | {only['mean_iou']:.3f} | {gain:+.3f}"
        yield f"| {name} | {whole['num']} | {scores} |"
    yield ""


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"
