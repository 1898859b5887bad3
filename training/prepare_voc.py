"""From PASCAL VOC's segmentations to a phrase store: `prepare voc`.

With COCO (`prepare instances`) the set of the paper's generalisation study (its figure 7):
templated expressions on photos that nobody described.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from training.data.coco_annotations import DEFAULT_POLICY, Instance
from training.data.instances import make_phrases
from training.data.lmdb_store import ImageRecord
from training.data.pascal_voc import (
    count_annotated,
    decode_objects,
    read_image_lists,
    read_indices,
)
from training.data.phrase_choice import DEFAULT_LIMITS, PhraseLimits
from training.data.store_building import (
    PrepareReport,
    ReadyPhoto,
    build_store,
    file_digest,
    read_photo,
)
from training.prepare import RULES_VERSION as PHRASE_RULES_VERSION

SOURCE = "voc"

# Raised whenever the reading changes, so that a half-made store of older rules is refused.
RULES_VERSION = 1


def prepare_voc(
    root: Path,
    out: Path,
    splits: Sequence[str] = ("train", "val"),
    seed: int = 0,
    *,
    limits: PhraseLimits = DEFAULT_LIMITS,
    show_progress: bool = True,
) -> PrepareReport:
    """Turn PASCAL VOC's instance segmentations into a phrase store.

    Args:
        root: the folder that holds ImageSets, JPEGImages, SegmentationObject, SegmentationClass
            and, as published, Annotations.
        out: the LMDB file to write.
        splits: names of lists in ImageSets/Segmentation.
        seed: chooses wordings and, where an image has more phrases than the limits, which.

    Raises:
        ValueError: a list is unusable, no image could be read, or `out` holds something else.
            Faulty images are left out and listed in the report.
    """
    source = VocSource(root, tuple(splits), seed, limits)
    report = build_store(source, out, show_progress=show_progress)
    report.notes += source.notes
    return report


class VocSource:
    """PASCAL VOC with templated phrases; a `PhotoSource`.

    Raises:
        ValueError: an image list is unusable.
    """

    def __init__(
        self,
        root: Path,
        splits: tuple[str, ...],
        seed: int = 0,
        limits: PhraseLimits = DEFAULT_LIMITS,
    ) -> None:
        self._root, self._seed, self._limits = root, seed, limits
        self._images = read_image_lists(root, splits)
        self._digest = self._content_digest()

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """The hash of the lists and annotations, the rules and their settings."""
        return {
            "maker": "voc",
            "rules_version": RULES_VERSION,
            "phrase_rules_version": PHRASE_RULES_VERSION,
            "annotations_sha256": self._digest,
            "seed": self._seed,
            "limits": {"per_image": self._limits.per_image, **dict(self._limits.per_kind)},
        }

    @property
    def images_root(self) -> Path:
        """JPEGImages."""
        return self._root / "JPEGImages"

    @property
    def image_ids(self) -> Sequence[str]:
        """The photos' names, in the order of the lists."""
        return [image.name for image in self._images]

    @property
    def faults(self) -> Iterable[str]:
        """None: all faults belong to an image."""
        return ()

    @property
    def notes(self) -> list[str]:
        """Whether void objects can be told."""
        if (self._root / "Annotations").is_dir():
            return []
        return [
            "there is no folder Annotations, so classes with an object that is void "
            "(difficult) could not be left out"
        ]

    def make(self, index: int, report: PrepareReport) -> ReadyPhoto | None:
        """See `PhotoSource`."""
        image = self._images[index]
        try:
            instances, (height, width) = self._instances(image.name)
            jpeg, pixels = read_photo(self.images_root / f"{image.name}.jpg", height, width)
        except ValueError as error:
            report.faults.append(f"image {image.name}: {error}")
            return None
        made = make_phrases(
            pixels,
            instances,
            DEFAULT_POLICY,
            image_id=image.name,
            seed=self._seed,
            limits=self._limits,
        )
        report.count(image.split, SOURCE, made.phrases, made.too_small)
        if not made.phrases:
            return None
        record = ImageRecord(image.name, image.split, SOURCE, height, width, len(made.phrases))
        return ReadyPhoto(record, jpeg, made.phrases)

    def _instances(self, name: str) -> tuple[dict[str, list[Instance]], tuple[int, int]]:
        """The complete classes of a photo, and its height and width."""
        objects, classes, boxes = self._annotation_files(name)
        indices = read_indices(objects)
        found = decode_objects(indices, read_indices(classes))
        annotated = count_annotated(boxes)
        complete = {
            class_name: things
            for class_name, things in found.items()
            if annotated[class_name] <= len(things)
        }
        height, width = indices.shape
        return complete, (height, width)

    def _annotation_files(self, name: str) -> tuple[Path, Path, Path]:
        return (
            self._root / "SegmentationObject" / f"{name}.png",
            self._root / "SegmentationClass" / f"{name}.png",
            self._root / "Annotations" / f"{name}.xml",
        )

    def _content_digest(self) -> str:
        """A few kilobytes a photo are read, so this takes seconds for the whole of VOC."""
        digest = hashlib.sha256()
        for image in self._images:
            digest.update(f"{image.name} {image.split}".encode())
            for path in self._annotation_files(image.name):
                digest.update((file_digest(path) if path.is_file() else "-").encode())
        return digest.hexdigest()
