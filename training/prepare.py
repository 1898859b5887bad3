"""From annotation files to a phrase store: the work behind `python -m training prepare`."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from tqdm import tqdm

from training.data.coco_annotations import (
    DEFAULT_POLICY,
    POLICIES,
    AnnotationPolicy,
    ImageRow,
    decode_instances,
    read_annotations,
)
from training.data.instances import KINDS, PhotoPhrases, make_phrases
from training.data.lmdb_store import ImageRecord, PhraseRecord, PhraseStoreWriter
from training.data.phrase_choice import DEFAULT_LIMITS, PhraseLimits

# Raised whenever the phrase rules change, so that a half-made store of older rules is refused.
RULES_VERSION = 2
_BATCH_IMAGES = 32


@dataclass
class PrepareReport:
    """What a store holds and what was left out.

    Attributes:
        images: counts by "split/source".
        phrases: counts by "split/kind/source".
        discriminative: counts by "split/kind" of phrases that tell siblings apart.
        too_small: counts by "split/kind" of phrases dropped for their small target.
        without_phrases: images that gave no phrase and are not stored.
        faults: one line for each faulty image or annotation.
    """

    images: dict[str, int] = field(default_factory=dict)
    phrases: dict[str, int] = field(default_factory=dict)
    discriminative: dict[str, int] = field(default_factory=dict)
    too_small: dict[str, int] = field(default_factory=dict)
    without_phrases: int = 0
    faults: list[str] = field(default_factory=list)

    def total(self, split: str) -> int:
        """Number of phrases of a split."""
        return sum(n for key, n in self.phrases.items() if key.split("/")[0] == split)

    def count(self, row: ImageRow, made: PhotoPhrases) -> None:
        """Add the phrases of one image."""
        for kind, number in made.too_small.items():
            _add(self.too_small, f"{row.split}/{kind}", number)
        if not made.phrases:
            self.without_phrases += 1
            return
        _add(self.images, f"{row.split}/{row.source}")
        for phrase in made.phrases:
            _add(self.phrases, f"{row.split}/{phrase.kind}/{row.source}")
            if phrase.discriminative:
                _add(self.discriminative, f"{row.split}/{phrase.kind}")

    def text(self) -> str:
        """The report as a table for a terminal."""
        splits = sorted({key.split("/")[0] for key in self.images})
        sources = sorted({key.split("/", 1)[1] for key in self.images})
        lines = []
        for split in splits:
            n_images = sum(self.images.get(f"{split}/{source}", 0) for source in sources)
            lines.append(f"{split}: {n_images} images, {self.total(split)} phrases")
            header = "".join(f"{source or '(no source)':>30}" for source in sources)
            lines.append(f"  {'kind':<10}{header}{'all':>8}{'telling':>9}{'too small':>11}")
            for kind in KINDS:
                counts = [self.phrases.get(f"{split}/{kind}/{source}", 0) for source in sources]
                lines.append(
                    f"  {kind:<10}"
                    + "".join(f"{count:>30}" for count in counts)
                    + f"{sum(counts):>8}{self.discriminative.get(f'{split}/{kind}', 0):>9}"
                    + f"{self.too_small.get(f'{split}/{kind}', 0):>11}"
                )
        lines.append(f"images without any phrase: {self.without_phrases}")
        lines.append(f"faults: {len(self.faults)}")
        lines += [f"  {fault}" for fault in self.faults]
        return "\n".join(lines)


def prepare_instances(
    annotations: Path,
    images_root: Path,
    out: Path,
    seed: int = 0,
    *,
    limits: PhraseLimits = DEFAULT_LIMITS,
    policies: Mapping[str, AnnotationPolicy] = POLICIES,
    show_progress: bool = True,
) -> PrepareReport:
    """Turn a COCO-format instance set into a phrase store.

    Run again after a kill it continues; run on a finished store it returns that store's report.

    Args:
        annotations: the COCO-format JSON file.
        images_root: the folder that the file names of its images start from.
        out: the LMDB file to write.
        seed: chooses wordings and, where an image has more phrases than the limits, which.
        policies: what the masks of each image `source` mean; others get the default policy.

    Raises:
        ValueError: the annotation file is unusable, no image could be read, or `out` holds
            something else. Faulty images and annotations are left out and listed in the report.
    """
    content = read_annotations(annotations)
    maker = _PhotoMaker(content.categories, images_root, policies, seed, limits)
    fingerprint = {
        "maker": "instances",
        "rules_version": RULES_VERSION,
        "annotations_sha256": hashlib.sha256(annotations.read_bytes()).hexdigest(),
        "seed": seed,
        "limits": {"per_image": limits.per_image, **dict(limits.per_kind)},
        "policies": {source: policy.as_json() for source, policy in policies.items()},
    }
    with PhraseStoreWriter(out, fingerprint) as writer:
        state = writer.progress or {"next": 0, "report": {"faults": list(content.faults)}}
        report, begin = PrepareReport(**state["report"]), state["next"]
        if writer.finished:
            return report
        bar = tqdm(
            total=len(content.images), initial=begin, unit="image", disable=not show_progress
        )
        with bar:
            for start in range(begin, len(content.images), _BATCH_IMAGES):
                rows = content.images[start : start + _BATCH_IMAGES]
                made = [maker.make(row, report) for row in rows]
                state = {"next": start + len(rows), "report": asdict(report)}
                writer.add([item for item in made if item is not None], state)
                bar.update(len(rows))
        if not report.images:
            raise ValueError(
                f"no image of {annotations} gave a phrase; is {images_root} the folder that its "
                f"file names start from?\n{report.text()}"
            )
        writer.finish((row.image_id for row in content.images), state)
    return report


@dataclass(frozen=True)
class _PhotoMaker:
    """Makes single images ready to store; holds what is the same for all."""

    categories: Mapping[int, str]
    images_root: Path
    policies: Mapping[str, AnnotationPolicy]
    seed: int
    limits: PhraseLimits

    def make(
        self, row: ImageRow, report: PrepareReport
    ) -> tuple[ImageRecord, bytes, tuple[PhraseRecord, ...]] | None:
        """One image with its phrases, counted in the report; None when faulty or without any."""
        try:
            jpeg, pixels = _read_photo(self.images_root / row.file_name, row.height, row.width)
        except ValueError as error:
            report.faults.append(f"image {row.image_id}: {error}")
            return None
        policy = self.policies.get(row.source, DEFAULT_POLICY)
        instances, faults = decode_instances(row, self.categories, policy)
        report.faults += faults
        made = make_phrases(
            pixels,
            instances,
            policy,
            image_id=row.image_id,
            seed=self.seed,
            limits=self.limits,
        )
        report.count(row, made)
        if not made.phrases:
            return None
        record = ImageRecord(
            row.image_id, row.split, row.source, row.height, row.width, len(made.phrases)
        )
        return record, jpeg, made.phrases


def _add(counts: dict[str, int], key: str, by: int = 1) -> None:
    counts[key] = counts.get(key, 0) + by


def _read_photo(path: Path, height: int, width: int) -> tuple[bytes, npt.NDArray[np.uint8]]:
    """The file's bytes (other formats re-encoded as JPEG) and its pixels (H, W, 3) uint8.

    EXIF orientation is not applied: COCO masks are drawn on the stored pixels.
    """
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            form = image.format
            pixels = np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise ValueError(f"no file {path.name}") from None
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path.name} cannot be read ({error})") from error
    if pixels.shape[:2] != (height, width):
        raise ValueError(
            f"{path.name} is {pixels.shape[1]} x {pixels.shape[0]}, annotated {width} x {height}"
        )
    if form != "JPEG":
        buffer = io.BytesIO()
        Image.fromarray(pixels).save(buffer, "JPEG", quality=95, subsampling=0)
        content = buffer.getvalue()
    return content, pixels
