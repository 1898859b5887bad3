"""PhraseCut's published counts beside what its files, and a store made of them, hold.

The authors publish the whole validation set; by their description its files are two, refer_val and
refer_miniv, which share no photo. Whether they do is counted here, not believed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import PIL

from training.data.phrasecut import PhraseCutFiles, TaskFile, iterate_rows, read_json_text
from training.data.store_building import PrepareReport

PUBLISHED: Mapping[str, tuple[int, int]] = {
    "train": (71_746, 310_816),
    "val": (2_971, 20_316),
    "test": (2_545, 14_354),
    "miniv": (100, 821),
}
"""(photos, phrases) of each split as the authors count them: miniv is a part of val."""
_VAL_WITHOUT_MINIV = (2_871, 19_495)
SKIPPED_FILE = "skip.json"


def notes_on_counts(
    content: PhraseCutFiles, files: Mapping[str, TaskFile], report: PrepareReport
) -> list[str]:
    """Lines for the end of a report.

    Args:
        files: the refer files that were stored, by split.
        report: of the store, complete.
    """
    notes = [_split_note(split, file, report) for split, file in files.items()]
    notes += _validation_notes(files)
    for split in files:
        kept = report.tallies.get(f"empty target/{split}", 0)
        if kept and split != "train":
            notes.append(f"{split}: {kept} phrases without a target are kept and score 0")
    notes += _photo_notes(content, files, report)
    notes += _skipped_notes(content.root, files)
    notes.append(
        "no phrase counts as telling siblings apart: PhraseCut does not mark a category's other "
        "instances"
    )
    notes.append(f"targets drawn by Pillow {PIL.__version__}; versions differ along edges")
    return notes


def _split_note(split: str, file: TaskFile, report: PrepareReport) -> str:
    found = len(file.rows), file.n_rows
    stored = sum(n for key, n in report.images.items() if key.split("/")[0] == split)
    left_out = {
        key.split("/")[2]: n
        for key, n in report.tallies.items()
        if key.startswith(f"left out/{split}/")
    }
    if file.faults:
        left_out["row named no photo or task, or a task again"] = len(file.faults)
    reasons = ", ".join(f"{n} ({reason})" for reason, n in left_out.items()) or "none"
    return (
        f"{split}: {file.name} holds {found[1]} phrases of {found[0]} photos, "
        f"{_verdict(split, found)}; stored {report.total(split)} of {stored}, left out: {reasons}"
    )


def _verdict(split: str, found: tuple[int, int]) -> str:
    photos, phrases = PUBLISHED[split]
    stated = f"published {phrases} of {photos}"
    if split == "val":
        stated += " with miniv, {1} of {0} without".format(*_VAL_WITHOUT_MINIV)
    equal = found == PUBLISHED[split] or (split == "val" and found == _VAL_WITHOUT_MINIV)
    return f"{stated} ({'as published' if equal else 'differs'})"


def _validation_notes(files: Mapping[str, TaskFile]) -> Iterator[str]:
    """How val and miniv lie to each other, where both are here."""
    if not {"val", "miniv"} <= files.keys():
        return
    val, miniv = files["val"], files["miniv"]
    found = len(val.rows.keys() | miniv.rows.keys()), len(val.task_ids | miniv.task_ids)
    equal = "as published" if found == PUBLISHED["val"] else "differs"
    yield (
        f"val_miniv: both files together hold {found[1]} phrases of {found[0]} photos, published "
        "as validation {1} of {0} ({2})".format(*PUBLISHED["val"], equal)
    )
    shared = val.rows.keys() & miniv.rows.keys()
    if not shared:
        yield "val and miniv share no photo"
        return
    yield (
        f"val and miniv share {len(shared)} photos: stored once, counted under val, in both splits"
    )
    unlike = sum(len(val.rows[key]) != len(miniv.rows[key]) for key in shared)
    if unlike:
        yield (
            f"{unlike} of them have more phrases in one file than in the other; both splits get "
            "all of them"
        )


def _photo_notes(
    content: PhraseCutFiles, files: Mapping[str, TaskFile], report: PrepareReport
) -> Iterator[str]:
    for name, what in (
        ("greyscale photos", "greyscale photos, stored as they are and read as RGB"),
        ("resized photos", "photos resized to their annotated size"),
    ):
        yield f"{what}: {report.tallies.get(name, 0)}"
    told = set().union(*(file.rows for file in files.values()))
    silent = sum(
        image.split in files and image.image_id not in told for image in content.images.values()
    )
    if silent:
        yield f"photos described without any phrase in these splits: {silent}"


def _skipped_notes(root: Path, files: Mapping[str, TaskFile]) -> Iterator[str]:
    """skip.json lists phrases that annotators gave up on, each with a reason and no mask."""
    path = root / SKIPPED_FILE
    if not path.is_file():
        return
    try:
        rows = [row for _, row in iterate_rows(read_json_text(path), path.name)]
        ids = {row["task_id"] for row in rows}
    except (ValueError, KeyError, TypeError):
        yield f"{SKIPPED_FILE} cannot be read; nothing depends on it"
        return
    used = sum(len(ids & file.task_ids) for file in files.values())
    yield (
        f"{SKIPPED_FILE}: {len(rows)} phrases that the annotators skipped, without masks, are not "
        f"used ({used} of them have masks in a refer file and are used from there)"
    )
