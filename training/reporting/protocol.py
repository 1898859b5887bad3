"""What a measured row rests on, in words, from the run's own files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from training.data.phrasecut_counts import PUBLISHED

from .groups import Group
from .published import PAPER_PROTOCOL
from .runs import Run, fingerprint_of

_TEST_PHRASES = PUBLISHED["test"][1]
_NAMES = {
    "instances": "templated phrases",
    "phrasecut": "PhraseCut",
    "refcoco": "RefCOCO",
    "voc": "PASCAL VOC, templated phrases",
}


def is_phrasecut_test(scores: Mapping[str, Any]) -> bool:
    """Whether these are scores over all of PhraseCut's test split, and so the paper's data."""
    return (
        data_maker(scores) == "phrasecut"
        and scores.get("split") == "test"
        and scores.get("num_phrases") == _TEST_PHRASES
    )


def data_maker(scores: Mapping[str, Any]) -> str:
    """Which `prepare` made the scored store, "" where the scores do not say."""
    data = scores.get("data")
    if isinstance(data, Mapping):
        return str(data.get("maker", ""))
    # Scores of prediction files, `evaluate --phrasecut`.
    return "phrasecut" if "files" in scores else ""


def data_label(scores: Mapping[str, Any]) -> str:
    """The scored data in a few words, never to be mistaken for PhraseCut's test split."""
    phrases = f"{scores['num_phrases']:,} phrases"
    if is_phrasecut_test(scores):
        return f"PhraseCut test, all {phrases}"
    maker, split = data_maker(scores), scores["split"]
    name = _NAMES.get(maker, maker or "data of unknown origin")
    if maker == "phrasecut" and split == "test":
        return f"only a part of PhraseCut test: {phrases} of {_TEST_PHRASES:,}"
    return f"NOT PhraseCut test: {name}, split {split}, {phrases}"


def short_label(scores: Mapping[str, Any]) -> str:
    """As `data_label`, for a narrow column."""
    label = data_label(scores)
    if label.startswith("only"):
        return "part of PhraseCut test"
    return "PhraseCut test" if is_phrasecut_test(scores) else "NOT PhraseCut test"


def scored_on(scores: Mapping[str, Any]) -> str:
    """A sentence about what was scored, for a table's notes."""
    images = scores.get("num_images")
    on = f" on {images:,} images" if isinstance(images, int) else ""
    sources = [name for name in scores.get("sources", {}) if name]
    named = f" (sources: {', '.join(sources)})" if sources else ""
    return (
        f"{data_label(scores)}{on}{named}, data {fingerprint_of(scores)}, "
        f"{threshold_label(scores)}, masks at the photos' own size"
    )


def threshold_label(scores: Mapping[str, Any]) -> str:
    """What made masks of probabilities."""
    threshold = scores["threshold"]
    return "masks from files" if threshold is None else f"threshold {threshold:g}"


def trained_with(run: Run) -> str:
    """Model, input, steps and batch of a run in one line; the seed is left to the caller."""
    data, optim = run.section("data"), run.section("optim")
    images, phrases = data.get("images_per_batch", 1), data.get("phrases_per_image", 1)
    each = f" x {phrases} phrases" if phrases != 1 else ""
    init = run.section("model").get("init", "none")
    start = "weights from scratch" if init == "none" else f"weights from {_short(str(init))}"
    details = [
        f"{run.model.preset} at {run.model.image_size} x {run.model.image_size}",
        f"{_length(optim)} of {images} images{each}",
        f"{optim.get('optimizer', 'adam')}, lr {float(optim.get('lr', 0)):g}",
        str(optim.get("precision", "fp32")),
        start,
    ]
    sizes = data.get("sizes")
    if sizes:
        sides = ", ".join(str(side) for _, side in sizes)
        details.insert(1, f"trained at {sides} px in turn")
    return ", ".join(details)


def protocol_of(group: Group) -> str:
    """The whole protocol of a group, as one line for a table."""
    seeds = ", ".join(str(seed) for seed in group.seeds)
    plural = "s" if len(group.seeds) > 1 else ""
    return (
        f"{data_label(group.scores)}; {threshold_label(group.scores)}; "
        f"{trained_with(group.runs[0])}; seed{plural} {seeds}"
    )


def departures(group: Group) -> list[str]:
    """How a group departs from the paper's protocol, as far as its files tell."""
    run = group.runs[0]
    data, optim = run.section("data"), run.section("optim")
    found = []
    if not is_phrasecut_test(group.scores):
        found.append("scored on other data than PhraseCut test")
    if not run.model.preset.endswith("rn101"):
        found.append(f"{run.model.preset} instead of {PAPER_PROTOCOL['preset']}")
    if run.model.image_size != PAPER_PROTOCOL["image_size"]:
        found.append(f"input {run.model.image_size} instead of {PAPER_PROTOCOL['image_size']}")
    if optim.get("epochs") != PAPER_PROTOCOL["epochs"]:
        length = (
            f"{optim['epochs']} epochs" if optim.get("epochs") else f"{optim.get('steps')} steps"
        )
        found.append(f"{length} instead of {PAPER_PROTOCOL['epochs']} epochs")
    if data.get("images_per_batch") != PAPER_PROTOCOL["images_per_batch"]:
        found.append(
            f"{data.get('images_per_batch')} images a batch instead of "
            f"{PAPER_PROTOCOL['images_per_batch']}"
        )
    return found


def _length(optim: Mapping[str, Any]) -> str:
    epochs = optim.get("epochs")
    return f"{epochs:g} epochs" if epochs else f"{optim.get('steps', 0):,} steps"


def _short(text: str) -> str:
    return text.replace("\\", "/").rsplit("/", 1)[-1]
