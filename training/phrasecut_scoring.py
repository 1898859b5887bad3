"""PhraseCut's official scores from files of predictions, and the writing of such files.

A prediction is `{task_id}.png` at the size of its image; every pixel that is not 0 is foreground,
whether the file has 1 bit, 8 bits or a palette. So a file with grey levels (a probability map, an
antialiased mask) counts far too much as foreground: such files are listed.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

from training.data.lmdb_store import PhraseRecord, PhraseStore
from training.data.phrasecut import (
    PhraseCutImage,
    PhraseCutTask,
    load_tasks,
    read_phrasecut,
    target_mask,
)
from training.data.phrasecut_subsets import Ranks, subsets_of
from training.metrics import Mask, mask_overlap, size_band
from training.outcomes import Overlap, PhraseOutcome
from training.pipeline import pool_size

SOURCE = "phrasecut"
_NAMED = 5
_LONGEST_NAME = 255  # bytes, in nearly every file system
_MASK_MODES = ("1", "L", "P")


@dataclass(frozen=True)
class FileScores:
    """Outcomes in the order of the annotation file, and what was notable about the files.

    missing: tasks without a file, scored as an empty mask. extra: files that belong to no task of
    the split. grey: tasks whose file has more than two levels.
    """

    outcomes: list[PhraseOutcome]
    missing: list[str]
    extra: list[str]
    grey: list[str]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready. The official masks depend on Pillow's version, so it is told."""
        return {
            "missing": self.missing,
            "extra_files": self.extra,
            "grey": self.grey,
            "pillow": PIL.__version__,
        }

    def notes(self) -> list[str]:
        """Sentences for a person; none where nothing was notable."""
        notes = []
        if self.missing:
            notes.append(f"Without a prediction, counted as 0: {_some(self.missing)}.")
        if self.extra:
            notes.append(f"Files of no phrase of this split, not used: {_some(self.extra)}.")
        if self.grey:
            notes.append(
                f"Predictions with grey levels, of which every pixel that is not 0 counts as "
                f"foreground: {_some(self.grey)}. Threshold probability maps before saving them."
            )
        return notes


def score_files(
    root: Path, split: str, predictions: Path, *, zero_missing: bool = False, progress: bool = True
) -> FileScores:
    """Score the PNGs of a folder against a split of VGPhraseCut_v0, as the official tool does.

    That tool leaves phrases without a prediction out of its means; here they are refused, or with
    `zero_missing` scored as empty masks. Raises ValueError for them, for files that are no masks
    of their image's size, and for annotations that cannot be read.
    """
    tasks, images, ranks = load_tasks(root, split), read_phrasecut(root).images, Ranks.read(root)
    _check_tasks(tasks, images, split)
    present = _files(predictions)
    names = {f"{task.task_id}.png": task.task_id for task in tasks}
    missing = [task_id for name, task_id in names.items() if name not in present]
    if missing and not zero_missing:
        raise ValueError(
            f"{predictions} lacks {len(missing)} of {len(tasks)} predictions of {split!r}: "
            f"{_first(f'{task_id}.png' for task_id in missing)}; add them, or count them as 0 "
            "with --missing zero"
        )

    def score(task: PhraseCutTask) -> _Scored:
        name = f"{task.task_id}.png"
        path = predictions / name if name in present else None
        return _score_task(task, images[task.image_id], path, ranks)

    with ThreadPoolExecutor(pool_size()) as pool:
        scored = list(
            tqdm(pool.map(score, tasks), f"score {split}", len(tasks), disable=not progress)
        )
    return FileScores(
        outcomes=_numbered([each.outcome for each in scored]),
        missing=missing,
        extra=sorted(present - names.keys()),
        grey=[each.outcome.task_id for each in scored if each.grey],
    )


class PredictionWriter:
    """Writes answered masks as 1-bit `{task_id}.png` into a folder; may be called from threads.

    Raises ValueError if a phrase of the split has no task id or one that no file can be named
    after, or if two phrases share one; then nothing is predicted in vain.
    """

    def __init__(self, folder: Path, store: PhraseStore, split: str) -> None:
        self._folder = folder
        counts = Counter(
            phrase.task_id
            for image_id in store.image_ids(split)
            for phrase in store.phrases(image_id)
        )
        for task_id, count in counts.items():
            _check_task_id(task_id, count, store.path)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(f"{folder} cannot be made ({error.strerror})") from error

    def __call__(self, phrase: PhraseRecord, mask: Mask) -> None:
        """`mask`: bool (H, W) at the photo's size."""
        path = self._folder / f"{phrase.task_id}.png"
        try:
            Image.fromarray(mask).save(path)
        except OSError as error:
            raise ValueError(f"{path} cannot be written ({error.strerror})") from error


class _Scored(NamedTuple):
    outcome: PhraseOutcome
    grey: bool


def _score_task(
    task: PhraseCutTask, image: PhraseCutImage, path: Path | None, ranks: Ranks
) -> _Scored:
    target = target_mask(task.polygons, image.height, image.width)
    mask, grey = np.zeros_like(target), False
    if path is not None:
        mask, grey = _read_mask(path, image)
    outcome = PhraseOutcome(
        image_id=str(task.image_id),
        index=0,
        task_id=task.task_id,
        phrase=task.phrase,
        kind=task.type,
        source=SOURCE,
        size=size_band(target),
        discriminative=False,
        subsets=subsets_of(task, image, target, ranks),
        predicted=int(np.count_nonzero(mask)),
        target=int(np.count_nonzero(target)),
        overlap=Overlap(*mask_overlap(mask, target)),
        probes=None,
    )
    return _Scored(outcome, grey)


def _read_mask(path: Path, image: PhraseCutImage) -> tuple[Mask, bool]:
    """The mask, and whether the file has more than two levels."""
    try:
        with Image.open(path) as picture:
            mode, size = picture.mode, picture.size
            pixels = np.asarray(picture)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error}); write it again") from error
    if mode not in _MASK_MODES:
        raise ValueError(f"{path} is a picture of mode {mode}, not a mask; write 1 or 8 bits")
    if size != (image.width, image.height):
        raise ValueError(
            f"{path} is {size[0]} x {size[1]} pixels but its image {image.width} x {image.height}; "
            "bring predictions to the image's original size"
        )
    mask = pixels != 0
    levels = pixels[mask]
    return mask, bool(levels.size) and bool(levels.min() != levels.max())


def _numbered(outcomes: Sequence[PhraseOutcome]) -> list[PhraseOutcome]:
    """Each with its place among its image's."""
    seen: Counter[str] = Counter()
    numbered = []
    for each in outcomes:
        numbered.append(replace(each, index=seen[each.image_id]))
        seen[each.image_id] += 1
    return numbered


def _check_tasks(tasks: Sequence[PhraseCutTask], images: Any, split: str) -> None:
    if not tasks:
        raise ValueError(f"refer_{split}.json holds no phrase; choose another split")
    for task_id, count in Counter(task.task_id for task in tasks).items():
        if count > 1:
            raise ValueError(
                f"split {split!r} holds task {task_id} {count} times; score its parts one by one"
            )
    for task in tasks:
        if task.image_id not in images:
            raise ValueError(
                f"image_data_split.json has no sound row for image {task.image_id} of task "
                f"{task.task_id}; download it again"
            )


def _files(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")}
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be read ({error.strerror}); give the folder of the PNGs"
        ) from error


def _check_task_id(task_id: str, count: int, store: Path) -> None:
    if not task_id:
        raise ValueError(
            f"{store} has phrases without a task id, which name the files of predictions; "
            "--write-predictions needs a store of `prepare phrasecut`"
        )
    if count > 1:
        raise ValueError(f"{store} has {count} phrases with task id {task_id!r}")
    name = f"{task_id}.png"
    if Path(name).name != name or name.startswith(".") or len(os.fsencode(name)) > _LONGEST_NAME:
        raise ValueError(f"no file can be named after task id {task_id!r} of {store}")


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} ({_first(names)})"


def _first(names: Any) -> str:
    names = list(names)
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
