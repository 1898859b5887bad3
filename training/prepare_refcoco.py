"""From RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO to a phrase store: `prepare refcoco`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from training.data.coco_annotations import (
    ImageRow,
    decode_segmentation,
    read_annotations,
)
from training.data.coco_ids import note_of_coco_photos
from training.data.lmdb_store import ImageRecord, PhraseRecord, encode_rle
from training.data.phrase_templates import clean_category_name, swap_left_right
from training.data.refcoco import PUBLISHED, Ref, published_key, read_refs
from training.data.store_building import (
    PrepareReport,
    ReadyPhoto,
    build_store,
    file_digest,
    read_photo,
)

KIND = "referring"
NO_TARGET, SEVERAL_TARGETS = "no_target", "several_targets"
"""Subsets of gRefCOCO: sentences about nothing in the photo, and about several things."""

# Raised whenever the records change, so that a half-made store of older rules is refused.
RULES_VERSION = 1


def prepare_refcoco(
    refs: Path,
    instances: Path,
    images_root: Path,
    out: Path,
    *,
    name: str | None = None,
    show_progress: bool = True,
) -> PrepareReport:
    """Turn a set of referring expressions on COCO photos into a phrase store.

    Args:
        refs: the pickled (or JSON) list of refs, as `data.refcoco` describes it.
        instances: the COCO-format masks that its annotation ids mean.
        images_root: COCO's train2014.
        out: the LMDB file to write.
        name: the set's name, kept as the images' source; default: the folder of `refs`.

    Raises:
        ValueError: a file is unusable, no image could be read, or `out` holds something else.
            Faulty images, refs and sentences are left out and listed in the report.
    """
    name = name or refs.resolve().parent.name
    source = RefCocoSource(refs, instances, images_root, name)
    report = build_store(source, out, show_progress=show_progress)
    report.notes += [*source.notes, *comparison(report, published_key(refs, name))]
    return report


def comparison(report: PrepareReport, key: tuple[str, str]) -> list[str]:
    """What is stored of each split beside what is published; [] for a set not in `PUBLISHED`."""
    lines = []
    for split, published in PUBLISHED.get(key, {}).items():
        images = sum(n for place, n in report.images.items() if place.split("/")[0] == split)
        images_wanted = images if published.images is None else published.images
        stated = "" if published.images is None else f"{published.images} images, "
        equal = images == images_wanted and report.total(split) == published.sentences
        lines.append(
            f"{' '.join(key)} {split}: published {stated}{published.sentences} sentences; "
            f"stored {images}, {report.total(split)}{'' if equal else ' (differs)'}"
        )
    return lines


@dataclass(frozen=True)
class _Entry:
    """One image of the store: a photo in one split."""

    image_id: str
    split: str
    row: ImageRow
    refs: tuple[Ref, ...]


class RefCocoSource:
    """Referring expressions on COCO photos; a `PhotoSource`.

    Where a set divides refs, not images, between its splits (RefCOCOg's google split), a photo
    is stored once for every split it is in, as "<image id>:<split>", because a record has one
    split. Its COCO id then shows that training and validation share it.

    Raises:
        ValueError: a file is unusable.
    """

    def __init__(self, refs: Path, instances: Path, images_root: Path, name: str) -> None:
        self._name, self._root = name, images_root
        content = read_annotations(instances)
        self._categories = content.categories
        read = read_refs(refs)
        self._digests = {"refs": file_digest(refs), "instances": file_digest(instances)}
        rows = {row.image_id: row for row in content.images}
        by_place: dict[tuple[int, str], list[Ref]] = defaultdict(list)
        self._faults = [*content.faults, *read.faults]
        for ref in read.refs:
            if str(ref.image_id) in rows:
                by_place[ref.image_id, ref.split].append(ref)
            else:
                self._faults.append(
                    f"ref {ref.ref_id}: no image {ref.image_id} in {instances.name}"
                )
        splits_of: dict[int, list[str]] = defaultdict(list)
        for image_id, split in sorted(by_place):
            splits_of[image_id].append(split)
        self._shared = sum(len(splits) > 1 for splits in splits_of.values())
        self._entries = [
            _Entry(
                str(image_id) if len(splits) == 1 else f"{image_id}:{split}",
                split,
                rows[str(image_id)],
                tuple(by_place[image_id, split]),
            )
            for image_id, splits in splits_of.items()
            for split in splits
        ]

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """The hashes of both files, the set's name and the rules."""
        return {
            "maker": "refcoco",
            "rules_version": RULES_VERSION,
            "name": self._name,
            **{f"{table}_sha256": digest for table, digest in self._digests.items()},
        }

    @property
    def images_root(self) -> Path:
        """COCO's train2014."""
        return self._root

    @property
    def image_ids(self) -> Sequence[str]:
        """In the order of the ids in the annotation file."""
        return [entry.image_id for entry in self._entries]

    @property
    def faults(self) -> Iterable[str]:
        """Faulty rows of the two files."""
        return self._faults

    @property
    def notes(self) -> list[str]:
        """How many photos are COCO's, and how many are in several splits."""
        notes = [note_of_coco_photos([entry.row.coco_id for entry in self._entries])]
        if self._shared:
            notes.append(
                f"{self._shared} photos are in several splits and stored once for each; training "
                "leaves out those that another split holds"
            )
        return notes

    def make(self, index: int, report: PrepareReport) -> ReadyPhoto | None:
        """See `PhotoSource`."""
        entry = self._entries[index]
        row = entry.row
        try:
            jpeg, _ = read_photo(self._root / row.file_name, row.height, row.width)
        except ValueError as error:
            report.faults.append(f"image {entry.image_id}: {error}")
            return None
        scene = _Scene(row, self._categories)
        phrases: list[PhraseRecord] = []
        for ref in entry.refs:
            try:
                phrases += scene.phrases(ref)
            except ValueError as error:
                report.faults.append(f"ref {ref.ref_id} of image {entry.image_id}: {error}")
        report.count(entry.split, self._name, phrases)
        if not phrases:
            return None
        record = ImageRecord(
            entry.image_id,
            entry.split,
            self._name,
            row.height,
            row.width,
            len(phrases),
            row.coco_id,
        )
        return ReadyPhoto(record, jpeg, phrases)


class _Scene:
    """The annotations of one photo, decoded when a ref asks for them."""

    def __init__(self, row: ImageRow, categories: Mapping[int, str]) -> None:
        self.row = row
        self.annotations = {annotation["id"]: annotation for annotation in row.annotations}
        self.class_names = {
            key: clean_category_name(categories[annotation["category_id"]])
            for key, annotation in self.annotations.items()
        }
        self._masks: dict[int, npt.NDArray[np.bool_]] = {}
        self._groups: dict[str, int] = {}

    def phrases(self, ref: Ref) -> list[PhraseRecord]:
        """One record a sentence. Raises ValueError for an unknown annotation or a broken mask."""
        target = np.zeros((self.row.height, self.row.width), dtype=bool)
        for ann_id in ref.ann_ids:
            target |= self._mask(ann_id)
        names = sorted({self.class_names[ann_id] for ann_id in ref.ann_ids})
        class_name = " and ".join(names)
        siblings = {key for key, name in self.class_names.items() if name in names}
        rle = encode_rle(target)
        return [
            PhraseRecord(
                phrase=sentence.text,
                kind=KIND,
                class_name=class_name,
                rle=rle,
                discriminative=bool(siblings - set(ref.ann_ids)),
                swapped=swap_left_right(sentence.text),
                swapped_rle=None,
                group=self._groups.setdefault(class_name, len(self._groups)),
                task_id=f"{ref.ref_id}_{sentence.sent_id}",
                subsets=_subsets(ref),
            )
            for sentence in ref.sentences
        ]

    def _mask(self, ann_id: int) -> npt.NDArray[np.bool_]:
        if ann_id not in self.annotations:
            raise ValueError(f"the image has no annotation {ann_id}")
        if ann_id not in self._masks:
            segmentation = self.annotations[ann_id]["segmentation"]
            try:
                mask = decode_segmentation(segmentation, self.row.height, self.row.width)
            except ValueError as error:
                raise ValueError(f"annotation {ann_id}: {error}") from error
            self._masks[ann_id] = mask
        return self._masks[ann_id]


def _subsets(ref: Ref) -> tuple[str, ...]:
    if len(ref.ann_ids) == 1:
        return ()
    return (SEVERAL_TARGETS,) if ref.ann_ids else (NO_TARGET,)
