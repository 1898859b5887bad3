"""Scores of a predictor over all phrases of a split, and whether it listens to their words.

Beside the scores stand three probes, because the overall number hides a model that only reads the
class name: the phrase replaced by its class name, by a blank text, and with "left" and "right"
exchanged (see `evaluation_report`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from tqdm import tqdm

from training.data.lmdb_store import PhraseRecord, PhraseStore, decode_rle
from training.evaluation_report import EvaluationReport, Probes, SwapSummary, TextProbe
from training.metrics import (
    Mask,
    ScoreSummary,
    SegmentationScores,
    iou_of,
    mask_overlap,
    size_band,
)
from training.predictors import Predictor

BLANK = ""
SWEEP_THRESHOLDS: tuple[float, ...] = tuple(round(0.05 * step, 2) for step in range(4, 17))
"""0.20, 0.25, ... 0.80."""

_KIND, _SOURCE, _SIZE, _DISCRIMINATIVE = "kind/", "source/", "size/", "discriminative"


def evaluate(
    predictor: Predictor,
    store: PhraseStore,
    split: str,
    threshold: float,
    *,
    probes: bool = True,
    image_ids: Sequence[str] | None = None,
    progress: bool = True,
) -> EvaluationReport:
    """Score `predictor` over all phrases of a split; every image is encoded once.

    A mask is where the probability exceeds `threshold`, as in the service, at the image's original
    size. `probes=False` leaves the three probes out and costs about half. `image_ids` restricts to
    some of the split's images. Raises ValueError for a threshold outside (0, 1), for a split
    without phrases, and for photos that do not have the stored size.
    """
    _check_threshold(threshold)
    ids = _image_ids(store, split, image_ids)
    tally = _Tally(probes)
    for image_id in tqdm(ids, desc=f"evaluate {split}", unit="image", disable=not progress):
        phrases = store.phrases(image_id)
        texts = _texts(phrases, probes)
        maps = predictor.predict(store.photo(image_id), texts)
        masks = {text: each > threshold for text, each in zip(texts, maps, strict=True)}
        tally.add(phrases, store.image(image_id).source, masks)
    return tally.report(split, threshold, len(ids))


def sweep(
    predictor: Predictor,
    store: PhraseStore,
    split: str,
    thresholds: Sequence[float] = SWEEP_THRESHOLDS,
    *,
    image_ids: Sequence[str] | None = None,
    progress: bool = True,
) -> dict[float, ScoreSummary]:
    """Scores over all phrases at several thresholds, from one pass of predictions.

    For choosing the threshold, so a test split is refused with ValueError; otherwise as
    `evaluate`.
    """
    if split.startswith("test"):
        raise ValueError(f"a threshold must not be chosen on {split!r}; sweep a validation split")
    for threshold in thresholds:
        _check_threshold(threshold)
    scores = {threshold: SegmentationScores() for threshold in thresholds}
    ids = _image_ids(store, split, image_ids)
    for image_id in tqdm(ids, desc=f"sweep {split}", unit="image", disable=not progress):
        phrases = store.phrases(image_id)
        texts = _texts(phrases, probes=False)
        maps = predictor.predict(store.photo(image_id), texts)
        probability = dict(zip(texts, maps, strict=True))
        for phrase in phrases:
            target = decode_rle(phrase.rle)
            for threshold, score in scores.items():
                score.add(probability[phrase.phrase] > threshold, target)
    return {threshold: score.summary() for threshold, score in scores.items()}


def best_threshold(scores: Mapping[float, ScoreSummary]) -> float:
    """The threshold of a sweep with the highest mean IoU; of equals the one nearest 0.5."""
    if not scores:
        raise ValueError("a sweep over no thresholds has no best one; pass at least one")
    return max(scores, key=lambda threshold: (scores[threshold]["mean_iou"], -abs(threshold - 0.5)))


class _Tally:
    """Accumulates everything that a report holds, image by image."""

    def __init__(self, probes: bool) -> None:
        self._probes = probes
        self._phrases = SegmentationScores()
        self._class_names = SegmentationScores()
        self._blank = SegmentationScores()
        self._swaps: dict[str, list[_SwapPair]] = defaultdict(list)
        self._empty = 0

    def add(self, phrases: Iterable[PhraseRecord], source: str, masks: Mapping[str, Mask]) -> None:
        for phrase in phrases:
            target = decode_rle(phrase.rle)
            mask = masks[phrase.phrase]
            kind = _KIND + phrase.kind
            groups = [kind, _SOURCE + source, _SIZE + size_band(target)]
            if phrase.discriminative:
                groups.append(_DISCRIMINATIVE)
            iou = self._phrases.add(mask, target, groups)
            self._empty += not mask.any()
            if not self._probes:
                continue
            self._class_names.add(masks[phrase.class_name], target, [kind])
            self._blank.add(masks[BLANK], target, [kind])
            if phrase.swapped is not None:
                self._swaps[phrase.kind].append(
                    _SwapPair(phrase, mask, masks[phrase.swapped], original_iou=iou)
                )

    def report(self, split: str, threshold: float, num_images: int) -> EvaluationReport:
        overall = self._phrases.summary()
        return EvaluationReport(
            split=split,
            threshold=threshold,
            num_images=num_images,
            num_phrases=overall["num"],
            overall=overall,
            kinds=self._phrases.summaries(_KIND),
            sources=self._phrases.summaries(_SOURCE),
            sizes=self._phrases.summaries(_SIZE),
            discriminative=self._phrases.summary(_DISCRIMINATIVE),
            empty_share=self._empty / overall["num"],
            probes=self._probe_report() if self._probes else None,
        )

    def _probe_report(self) -> Probes:
        return Probes(
            class_name_only=_text_probe(self._class_names),
            blank=_text_probe(self._blank),
            swap=_swap_summary([pair for pairs in self._swaps.values() for pair in pairs]),
            swap_kinds={kind: _swap_summary(pairs) for kind, pairs in sorted(self._swaps.items())},
        )


class _SwapPair:
    """The measures of one phrase and its left/right-swapped form; masks are not kept."""

    __slots__ = ("empty_masks", "original_iou", "overlap", "swapped_iou")

    def __init__(
        self, phrase: PhraseRecord, mask: Mask, swapped_mask: Mask, original_iou: float
    ) -> None:
        self.empty_masks = int(not mask.any()) + int(not swapped_mask.any())
        self.overlap = iou_of(*mask_overlap(mask, swapped_mask))
        self.original_iou = original_iou
        self.swapped_iou: float | None = None
        if phrase.swapped_rle is not None:
            self.swapped_iou = iou_of(*mask_overlap(swapped_mask, decode_rle(phrase.swapped_rle)))


def _text_probe(scores: SegmentationScores) -> TextProbe:
    return TextProbe(scores.summary(), scores.summaries(_KIND))


def _swap_summary(pairs: Sequence[_SwapPair]) -> SwapSummary:
    num = len(pairs)
    overlaps = [pair.overlap for pair in pairs if pair.empty_masks == 0]
    truths = [
        (pair.original_iou, pair.swapped_iou) for pair in pairs if pair.swapped_iou is not None
    ]
    return SwapSummary(
        num=num,
        overlap=_mean(overlaps),
        num_overlap=len(overlaps),
        one_empty_share=sum(pair.empty_masks == 1 for pair in pairs) / max(num, 1),
        both_empty_share=sum(pair.empty_masks == 2 for pair in pairs) / max(num, 1),
        num_swapped=len(truths),
        original_mean_iou=_mean([original for original, _ in truths]),
        swapped_mean_iou=_mean([swapped for _, swapped in truths]),
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _texts(phrases: Iterable[PhraseRecord], probes: bool) -> list[str]:
    """Every text to be asked about an image, each once."""

    def wanted() -> Iterator[str]:
        for phrase in phrases:
            yield phrase.phrase
            if probes:
                yield phrase.class_name
                yield BLANK
                if phrase.swapped is not None:
                    yield phrase.swapped

    return list(dict.fromkeys(wanted()))


def _image_ids(store: PhraseStore, split: str, image_ids: Sequence[str] | None) -> list[str]:
    ids = store.image_ids(split)
    if image_ids is not None:
        unknown = set(image_ids) - set(ids)
        if unknown:
            raise ValueError(f"not in split {split!r}: {', '.join(sorted(unknown)[:5])}")
        ids = list(image_ids)
    ids = [image_id for image_id in ids if store.phrase_count(image_id)]
    if not ids:
        raise ValueError(
            f"{store.path} has no phrases in split {split!r}; prepare it with that split, or "
            "choose another one"
        )
    return ids


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold < 1:
        raise ValueError(f"a threshold must lie between 0 and 1, not be {threshold}")
