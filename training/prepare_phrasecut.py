"""From VGPhraseCut_v0 to a phrase store: `python -m training prepare phrasecut`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from training.data.lmdb_store import ImageRecord, PhraseRecord, encode_rle
from training.data.phrase_templates import swap_left_right
from training.data.phrasecut import (
    IMAGES_FILE,
    SPLITS,
    PhraseCutImage,
    PhraseCutTask,
    TaskFile,
    read_phrasecut,
    refer_file,
    target_mask,
)
from training.data.phrasecut_counts import notes_on_counts
from training.data.phrasecut_subsets import RANKS_FILE, Ranks, subsets_of
from training.data.store_building import (
    PrepareReport,
    ReadyPhoto,
    build_store,
    file_digest,
    fit_photo,
)

SOURCE = "phrasecut"
WHOLE_VALIDATION = "val_miniv"
"""The split that the data set's authors publish as validation: their files "val" and "miniv"."""

# Raised whenever the records change, so that a half-made store of older rules is refused.
RULES_VERSION = 1


def prepare_phrasecut(
    root: Path, out: Path, splits: Sequence[str] = SPLITS, *, show_progress: bool = True
) -> PrepareReport:
    """Turn PhraseCut into one phrase store; see `build_store`.

    Args:
        root: the folder VGPhraseCut_v0.
        out: the LMDB file to write.
        splits: which of SPLITS, all in one store. With "val" and "miniv" it also has "val_miniv".

    Raises:
        ValueError: a file is missing or damaged, no photo could be read, or `out` holds something
            else. Faulty photos and rows are left out, listed and counted in the report.
    """
    source = PhraseCutSource(root, splits)
    report = build_store(
        source, out, further_splits=source.further_splits, show_progress=show_progress
    )
    report.notes += source.notes(report)
    return report


@dataclass(frozen=True)
class _Photo:
    """A photo of the store and the refer files that have phrases about it.

    files: the first is the photo's own split; the others are further splits.
    """

    image_id: int
    files: tuple[str, ...]


class PhraseCutSource:
    """PhraseCut's splits; a `PhotoSource`.

    A photo that several of val, test and miniv have is stored once and belongs to each of them. A
    photo that one of them has does not train.

    Raises:
        ValueError: an unknown split, or a file that is missing or damaged.
    """

    def __init__(self, root: Path, splits: Sequence[str] = SPLITS) -> None:
        self._splits = tuple(split for split in SPLITS if split in splits)
        unknown = [split for split in splits if split not in SPLITS]
        if unknown or not splits:
            named = f"PhraseCut has no split {', '.join(unknown)}" if unknown else "no split given"
            raise ValueError(f"{named}; choose from {', '.join(SPLITS)}")
        self._content = read_phrasecut(root)
        self._ranks = Ranks.read(root)
        self._files = {split: TaskFile.open(refer_file(root, split)) for split in self._splits}
        self._digests = {
            path.name: file_digest(path)
            for path in (
                root / IMAGES_FILE,
                root / RANKS_FILE,
                *(refer_file(root, split) for split in self._splits),
            )
        }
        self._photos = list(_plan(self._files))

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """The hashes of the files, the rules, and Pillow's version, which decides edge pixels."""
        return {
            "maker": SOURCE,
            "rules_version": RULES_VERSION,
            "splits": list(self._splits),
            "sha256": self._digests,
            "pillow": PIL.__version__,
        }

    @property
    def images_root(self) -> Path:
        """VGPhraseCut_v0/images."""
        return self._content.images_root

    @property
    def image_ids(self) -> Sequence[str]:
        """Split by split in the order of the refer files."""
        return [str(photo.image_id) for photo in self._photos]

    @property
    def faults(self) -> Iterable[str]:
        """Rows that name no photo or task, and photos that training and an evaluation share."""
        yield from self._content.faults
        for file in self._files.values():
            yield from file.faults
        for photo in self._photos:
            if "train" in photo.files[1:]:
                yield f"image {photo.image_id} is in refer_train.json and in {photo.files[0]}"

    @property
    def further_splits(self) -> Mapping[str, Collection[str]]:
        """Image ids by split, beyond each image's own."""
        further: dict[str, list[str]] = {}
        for photo in self._photos:
            for split in photo.files[1:]:
                if split != "train":
                    further.setdefault(split, []).append(str(photo.image_id))
            if {"val", "miniv"} <= set(self._splits) and {"val", "miniv"} & set(photo.files):
                further.setdefault(WHOLE_VALIDATION, []).append(str(photo.image_id))
        return further

    def notes(self, report: PrepareReport) -> list[str]:
        """What the files hold beside what is published, and what is special in this data."""
        return notes_on_counts(self._content, self._files, report)

    def make(self, index: int, report: PrepareReport) -> ReadyPhoto | None:
        """See `PhotoSource`."""
        photo = self._photos[index]
        split = photo.files[0]
        tasks = self._tasks(photo, report)
        image = self._content.images.get(photo.image_id)
        if image is None:
            report.tally(f"left out/{split}/photo not described", len(tasks))
            report.list_fault(
                "photos not described", f"image {photo.image_id} is not in {IMAGES_FILE}"
            )
            return None
        try:
            fitted = fit_photo(self._content.photo(image.image_id), image.height, image.width)
        except ValueError as error:
            report.tally(f"left out/{split}/photo missing or unusable", len(tasks))
            report.list_fault("photos missing or unusable", f"image {photo.image_id}: {error}")
            return None
        if fitted.greyscale:
            report.tally("greyscale photos")
        if fitted.resized_from:
            report.tally("resized photos")
            height, width = fitted.resized_from
            report.list_fault(
                "resized photos",
                f"image {photo.image_id}: {width} x {height} resized to the annotated "
                f"{image.width} x {image.height}",
            )
        phrases = list(self._records(tasks, image, split, report))
        report.count(split, SOURCE, phrases)
        if not phrases:
            return None
        record = ImageRecord(
            image_id=str(image.image_id),
            split=split,
            source=SOURCE,
            height=image.height,
            width=image.width,
            n_phrases=len(phrases),
            coco_id=image.coco_id,
        )
        return ReadyPhoto(record, fitted.jpeg, phrases)

    def _tasks(self, photo: _Photo, report: PrepareReport) -> list[PhraseCutTask]:
        """A photo's tasks from all its files, each once; broken ones are listed."""
        tasks: dict[str, PhraseCutTask] = {}
        for split in photo.files:
            for task in self._files[split].tasks(photo.image_id):
                if isinstance(task, ValueError):
                    report.tally(f"left out/{split}/broken row")
                    report.list_fault("broken rows", f"refer_{split}.json: {task}")
                elif split == "train" and photo.files[0] != "train":
                    report.tally("left out/train/photo of an evaluation split")
                else:
                    tasks.setdefault(task.task_id, task)
        return list(tasks.values())

    def _records(
        self,
        tasks: Sequence[PhraseCutTask],
        image: PhraseCutImage,
        split: str,
        report: PrepareReport,
    ) -> Iterator[PhraseRecord]:
        groups: dict[str, int] = {}
        for task in tasks:
            mask = target_mask(task.polygons, image.height, image.width)
            if not np.any(mask):
                report.tally(f"empty target/{split}")
                what = "left out" if split == "train" else "kept, every prediction scores 0"
                report.list_fault("empty targets", f"task {task.task_id}: no target ({what})")
                if split == "train":
                    report.tally("left out/train/no target")
                    continue
            yield PhraseRecord(
                phrase=task.phrase,
                kind=task.type,
                class_name=task.name,
                rle=encode_rle(mask),
                discriminative=False,
                swapped=swap_left_right(task.phrase),
                swapped_rle=None,
                group=groups.setdefault(task.name, len(groups)),
                task_id=task.task_id,
                subsets=subsets_of(task, image, mask, self._ranks),
            )


def _plan(files: Mapping[str, TaskFile]) -> Iterator[_Photo]:
    """Every photo once, by its own split, evaluation before training where several have it."""
    having: dict[int, list[str]] = {}
    for split in sorted(files, key=lambda split: (split == "train", SPLITS.index(split))):
        for image_id in files[split].rows:
            having.setdefault(image_id, []).append(split)
    for split, file in files.items():
        for image_id in file.rows:
            if having[image_id][0] == split:
                yield _Photo(image_id, tuple(having[image_id]))
