"""From COCO-format annotations to a store of layouts: `python -m training prepare scenes`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from training.data.coco_annotations import AS_WRITTEN, read_annotations
from training.data.cutouts import CutOutBank
from training.data.phrase_records import ImageRecord
from training.data.scene_phrases import scene_phrases
from training.data.scenes import compose_scene
from training.data.store_building import PrepareReport, ReadyPhoto, build_store, file_digest

# Raised whenever layouts or their phrases change, so that a half-made store of before is refused.
SCENES_VERSION = 1
SOURCE = "scenes"
_JPEG_QUALITY = 92


def prepare_scenes(
    annotations: Path,
    images_root: Path,
    out: Path,
    counts: Mapping[str, int],
    seed: int = 0,
    *,
    show_progress: bool = True,
) -> PrepareReport:
    """Make a store of layouts; see `build_store`.

    Args:
        annotations, images_root: as for `prepare_instances`.
        counts: how many layouts of each split, made of that split's photos alone.

    Raises:
        ValueError: the annotations are unusable, or hold nothing to make layouts of.
    """
    return build_store(
        SceneSource(annotations, images_root, counts, seed), out, show_progress=show_progress
    )


class SceneSource:
    """Layouts as a `PhotoSource`: photo i follows from the seed, its split and its number.

    Raises:
        ValueError: see `prepare_scenes`.
    """

    def __init__(
        self, annotations: Path, images_root: Path, counts: Mapping[str, int], seed: int = 0
    ) -> None:
        content = read_annotations(annotations, AS_WRITTEN)
        self._root, self._seed, self._counts = images_root, seed, dict(counts)
        self._digest, self._faults = file_digest(annotations), content.faults
        self._banks = {
            split: CutOutBank(
                [row for row in content.images if row.split == split],
                content.categories,
                images_root,
            )
            for split, count in counts.items()
            if count
        }
        self._ids = [
            f"{split}-{number:06d}" for split, count in counts.items() for number in range(count)
        ]

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """The annotation file's hash, the rules, the seed and the numbers."""
        return {
            "maker": "scenes",
            "scenes_version": SCENES_VERSION,
            "annotations_sha256": self._digest,
            "seed": self._seed,
            "counts": self._counts,
        }

    @property
    def images_root(self) -> Path:
        """Where the annotation file's names start from."""
        return self._root

    @property
    def image_ids(self) -> Sequence[str]:
        """`train-000000`, ..."""
        return self._ids

    @property
    def faults(self) -> Iterable[str]:
        """Rows that the annotation file cannot mean."""
        return self._faults

    def make(self, index: int, report: PrepareReport) -> ReadyPhoto | None:
        """See `PhotoSource`."""
        image_id = self._ids[index]
        split = image_id.rpartition("-")[0]
        rng = Random(hashlib.sha256(f"{self._seed}:{image_id}".encode()).digest())
        scene = compose_scene(self._banks[split], rng)
        phrases, objects = scene_phrases(scene, image_id, self._seed, rng)
        report.count(split, SOURCE, phrases)
        if not phrases:
            return None
        height, width = scene.image.shape[:2]
        record = ImageRecord(image_id, split, SOURCE, height, width, len(phrases))
        buffer = io.BytesIO()
        Image.fromarray(scene.image).save(buffer, "JPEG", quality=_JPEG_QUALITY)
        return ReadyPhoto(record, buffer.getvalue(), phrases, objects)
