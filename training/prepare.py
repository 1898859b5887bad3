"""From COCO-format annotations to a phrase store: `python -m training prepare instances`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from training.data.coco_annotations import (
    AS_WRITTEN,
    DEFAULT_POLICY,
    POLICIES,
    AnnotationPolicy,
    RowDefaults,
    decode_instances,
    read_annotations,
)
from training.data.coco_ids import note_of_coco_photos
from training.data.colours import LOOSE_COLOURS, STRICT_COLOURS, ColourRule
from training.data.instances import make_phrases
from training.data.lmdb_store import ImageRecord
from training.data.phrase_choice import DEFAULT_LIMITS, DISCRIMINATIVE_LIMITS, PhraseLimits
from training.data.store_building import (
    PrepareReport,
    ReadyPhoto,
    build_store,
    file_digest,
    read_photo,
)

# Raised whenever the phrase rules change, so that a half-made store of older rules is refused.
RULES_VERSION = 2


def prepare_instances(
    annotations: Path,
    images_root: Path,
    out: Path,
    seed: int = 0,
    *,
    limits: PhraseLimits = DEFAULT_LIMITS,
    policies: Mapping[str, AnnotationPolicy] = POLICIES,
    defaults: RowDefaults = AS_WRITTEN,
    sources: Sequence[str] = (),
    discriminative: bool = False,
    loose_colours: bool = False,
    show_progress: bool = True,
) -> PrepareReport:
    """Turn a COCO-format instance set into a phrase store; see `build_store`.

    Args:
        annotations: the COCO-format JSON file.
        images_root: the folder that the file names of its images start from.
        out: the LMDB file to write.
        seed: chooses wordings and, where an image has more phrases than the limits, which.
        policies: what the masks of each image `source` mean; others get the default policy.
        defaults: what the file's image rows leave unsaid.
        sources: only photos of these; empty: all.
        discriminative: only photos that have a phrase whose words beyond the class matter, with as
            many such phrases as they allow; `limits` and the policies' `layout_limit` do not count.
        loose_colours: name colours by `LOOSE_COLOURS`: more phrases, fewer of them beyond doubt.

    Raises:
        ValueError: the annotation file is unusable, no image could be read, or `out` holds
            something else. Faulty images and annotations are left out and listed in the report.
    """
    if discriminative:
        limits = DISCRIMINATIVE_LIMITS
        policies = {name: replace(each, layout_limit=None) for name, each in policies.items()}
    colours = LOOSE_COLOURS if loose_colours else STRICT_COLOURS
    source = InstanceSource(
        annotations, images_root, seed, limits, policies, defaults, sources, discriminative, colours
    )
    report = build_store(source, out, show_progress=show_progress)
    report.notes += source.notes
    return report


class InstanceSource:
    """A COCO-format instance set with templated phrases; a `PhotoSource`.

    Raises:
        ValueError: the annotation file is unusable.
    """

    def __init__(
        self,
        annotations: Path,
        images_root: Path,
        seed: int = 0,
        limits: PhraseLimits = DEFAULT_LIMITS,
        policies: Mapping[str, AnnotationPolicy] = POLICIES,
        defaults: RowDefaults = AS_WRITTEN,
        sources: Sequence[str] = (),
        discriminative: bool = False,
        colours: ColourRule = STRICT_COLOURS,
    ) -> None:
        self._content = read_annotations(annotations, defaults)
        self._images = [row for row in self._content.images if not sources or row.source in sources]
        self._sources = sorted(sources)
        self._root, self._seed = images_root, seed
        self._limits, self._policies = limits, policies
        self._defaults, self._discriminative = defaults, discriminative
        self._colours = colours
        self._digest = file_digest(annotations)

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """The annotation file's hash, the rules and their settings."""
        settings = {
            "maker": "instances",
            "rules_version": RULES_VERSION,
            "annotations_sha256": self._digest,
            "seed": self._seed,
            "limits": {"per_image": self._limits.per_image, **dict(self._limits.per_kind)},
            "policies": {source: policy.as_json() for source, policy in self._policies.items()},
        }
        if self._defaults != AS_WRITTEN:  # so that a store of before is known again
            settings["row_defaults"] = asdict(self._defaults)
        if self._sources:
            settings["sources"] = self._sources
        if self._discriminative:
            settings["discriminative"] = True
        if self._colours != STRICT_COLOURS:
            settings["colours"] = asdict(self._colours)
        return settings

    @property
    def images_root(self) -> Path:
        """Where the annotation file's names start from."""
        return self._root

    @property
    def image_ids(self) -> Sequence[str]:
        """In the order of the annotation file's ids."""
        return [row.image_id for row in self._images]

    @property
    def faults(self) -> Iterable[str]:
        """Rows that the annotation file cannot mean."""
        return self._content.faults

    @property
    def notes(self) -> list[str]:
        """How many photos are COCO's."""
        return [note_of_coco_photos([row.coco_id for row in self._images])]

    def make(self, index: int, report: PrepareReport) -> ReadyPhoto | None:
        """See `PhotoSource`."""
        row = self._images[index]
        try:
            jpeg, pixels = read_photo(self._root / row.file_name, row.height, row.width)
        except ValueError as error:
            report.faults.append(f"image {row.image_id}: {error}")
            return None
        policy = self._policies.get(row.source, DEFAULT_POLICY)
        instances, faults = decode_instances(row, self._content.categories, policy)
        report.faults += faults
        made = make_phrases(
            pixels,
            instances,
            policy,
            image_id=row.image_id,
            seed=self._seed,
            limits=self._limits,
            colours=self._colours,
        )
        if self._discriminative and not any(each.discriminative for each in made.phrases):
            return None
        report.count(row.split, row.source, made.phrases, made.too_small)
        if not made.phrases:
            return None
        record = ImageRecord(
            row.image_id,
            row.split,
            row.source,
            row.height,
            row.width,
            len(made.phrases),
            row.coco_id,
        )
        return ReadyPhoto(record, jpeg, made.phrases, made.objects or None)
