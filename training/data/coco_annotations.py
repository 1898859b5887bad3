"""Reading a COCO-format instance file, and what its annotation can and cannot decide.

Instance files differ in what a missing mask means. `AnnotationPolicy` says so for each source;
an image row names its source in the field `source` (absent: `DEFAULT_POLICY`). Everything that
follows makes phrases only about classes that are annotated *and complete* in the image:

- a class with a crowd region (`iscrowd`), with a faulty mask, or listed in LVIS's
  `not_exhaustive_category_ids` is not complete there;
- a class that a partial annotation leaves out is unknown, not absent. No phrase names it, not
  even as the other end of a relation;
- a class whose name covers another annotated class ("bag" beside a "purse") is not decided by
  its own masks; see `AnnotationPolicy.covers`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as mask_api

from training.data.class_words import LEGWEAR, SHOES, TOPS
from training.data.coco_ids import COCO_ID_MODES, coco_id_of, is_official
from training.data.phrase_templates import clean_category_name

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class AnnotationPolicy:
    """What the masks of one source mean. Class names are clean (see `clean_category_name`).

    Attributes:
        regions: one mask holds everything of its class (both shoes), so nothing can be counted,
            compared or ordered: only class and colour phrases are made.
        stuff: classes that come in arbitrary pieces (vegetation, street); their pieces cannot be
            told apart by a person, so only their class is named.
        unnamed: classes that nobody would ask for by that name; no phrases, not even relations.
        covers: class -> narrower classes; when one of these is annotated in the same image, the
            masks of the broader class are not all that its name means.
        layout_limit: the most position, size and ordinal phrases an image of this source gets.
    """

    regions: bool = False
    stuff: frozenset[str] = frozenset()
    unnamed: frozenset[str] = frozenset()
    covers: Mapping[str, frozenset[str]] = field(default_factory=dict)
    layout_limit: int | None = None

    def as_json(self) -> dict[str, Any]:
        """The policy as plain JSON, to tell stores of other policies apart."""
        return {
            "regions": self.regions,
            "stuff": sorted(self.stuff),
            "unnamed": sorted(self.unnamed),
            "covers": {name: sorted(narrower) for name, narrower in self.covers.items()},
            "layout_limit": self.layout_limit,
        }


DEFAULT_POLICY = AnnotationPolicy()

POLICIES: Mapping[str, AnnotationPolicy] = {
    "coco": DEFAULT_POLICY,
    "coco-partial": DEFAULT_POLICY,
    "clothing-co-parsing": AnnotationPolicy(
        regions=True,
        unnamed=frozenset({"accessories"}),
        covers={
            "shoes": SHOES,
            "heels": frozenset({"pumps", "wedges"}),
            "top": TOPS,
            "shirt": frozenset({"t-shirt", "blouse"}),
            "blouse": frozenset({"shirt", "top"}),
            "sweater": frozenset({"jumper", "cardigan", "sweatshirt", "hoodie"}),
            "jumper": frozenset({"sweater", "sweatshirt"}),
            "coat": frozenset({"jacket", "blazer", "cape"}),
            "jacket": frozenset({"blazer", "coat", "cardigan"}),
            "suit": frozenset({"blazer", "pants", "jacket"}),
            "pants": frozenset({"jeans", "leggings", "shorts", "tights"}),
            "bag": frozenset({"purse", "wallet"}),
            "purse": frozenset({"bag", "wallet"}),
            "glasses": frozenset({"sunglasses"}),
            "stockings": LEGWEAR - {"stockings"},
            "tights": LEGWEAR - {"tights", "socks"},
        },
    ),
    "building-facade-segmentation": AnnotationPolicy(
        stuff=frozenset({"vegetation", "street", "facade", "fence", "balcony fence", "window"}),
        unnamed=frozenset({"traffic infrastructure", "non building infrastructure"}),
        layout_limit=2,
    ),
}


@dataclass(frozen=True, eq=False)
class Instance:
    """One annotated thing: its mask (H, W) bool, area in pixels, and box (x0, y0, x1, y1)."""

    mask: npt.NDArray[np.bool_]
    area: int
    box: tuple[float, float, float, float]

    @property
    def centre(self) -> tuple[float, float]:
        """Middle of the box, (x, y) in pixels."""
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2

    @property
    def extent(self) -> tuple[float, float]:
        """Width and height of the box in pixels."""
        x0, y0, x1, y1 = self.box
        return x1 - x0, y1 - y0


@dataclass(frozen=True)
class ImageRow:
    """One image of the file with its annotation rows, masks not yet decoded."""

    image_id: str
    file_name: str
    height: int
    width: int
    source: str
    split: str
    annotations: tuple[Mapping[str, Any], ...]
    incomplete: frozenset[int]
    coco_id: int | None = None


@dataclass(frozen=True)
class RowDefaults:
    """What the image rows of a file leave unsaid.

    Attributes:
        split: of rows without `split`.
        source: of rows without `source`; chooses the policy and names them in reports.
        coco_ids: how photos of COCO are known, one of `coco_ids.COCO_ID_MODES`.
    """

    split: str = "train"
    source: str = ""
    coco_ids: str = "auto"

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"unknown split {self.split!r}; use one of {', '.join(SPLITS)}")
        if self.coco_ids not in COCO_ID_MODES:
            raise ValueError(
                f"unknown way {self.coco_ids!r} to know COCO's photos; "
                f"use one of {', '.join(COCO_ID_MODES)}"
            )


AS_WRITTEN = RowDefaults()


@dataclass(frozen=True)
class AnnotationFile:
    """A read file: images in the order of their ids, category names by id, faults found."""

    images: tuple[ImageRow, ...]
    categories: Mapping[int, str]
    faults: tuple[str, ...]


def read_annotations(path: Path, defaults: RowDefaults = AS_WRITTEN) -> AnnotationFile:
    """Read a COCO-format instance file.

    A row without `file_name` (LVIS) has the last two parts of its `coco_url`, as in
    train2017/000000000009.jpg.

    Raises:
        ValueError: the file is missing, no JSON, or lacks the COCO tables. Single faulty rows do
            not raise: they are left out and listed in `faults`.
    """
    content = _load_json(path)
    try:
        categories = {int(row["id"]): str(row["name"]) for row in content["categories"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: every category needs a whole id and a name") from error
    faults: list[str] = []
    by_image: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in content["annotations"]:
        missing = [
            key for key in ("id", "image_id", "category_id", "segmentation") if key not in row
        ]
        if missing:
            faults.append(f"annotation {row.get('id', '?')}: no {', '.join(missing)}")
        elif row["category_id"] not in categories:
            faults.append(f"annotation {row['id']}: unknown category {row['category_id']}")
        else:
            by_image[row["image_id"]].append(row)
    images = []
    official = is_official(content.get("info"))
    for row in sorted(content["images"], key=lambda row: row.get("id", -1)):
        rows = sorted(by_image.pop(row.get("id"), []), key=lambda annotation: annotation["id"])
        try:
            images.append(_image_row(row, tuple(rows), defaults, official))
        except ValueError as error:
            faults.append(f"image {row.get('id', '?')}: {error}")
    faults += [f"annotations of image {key}: no such image" for key in sorted(by_image)]
    return AnnotationFile(tuple(images), categories, tuple(faults))


def _image_row(
    row: Mapping[str, Any],
    annotations: tuple[Mapping[str, Any], ...],
    defaults: RowDefaults,
    official: bool,
) -> ImageRow:
    """Raises ValueError where the row lacks something or says what cannot be."""
    file_name = row.get("file_name") or "/".join(str(row.get("coco_url", "")).split("/")[-2:])
    missing = [key for key in ("id", "height", "width") if row.get(key) is None]
    missing += [] if file_name else ["file_name"]
    if missing:
        raise ValueError(f"no {', '.join(missing)}")
    split = row.get("split", defaults.split)
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}, expected one of {SPLITS}")
    return ImageRow(
        image_id=str(row["id"]),
        file_name=file_name,
        height=int(row["height"]),
        width=int(row["width"]),
        source=str(row.get("source", defaults.source)),
        split=split,
        annotations=annotations,
        incomplete=frozenset(row.get("not_exhaustive_category_ids", ())),
        coco_id=coco_id_of(row, defaults.coco_ids, official=official),
    )


def decode_instances(
    row: ImageRow, categories: Mapping[int, str], policy: AnnotationPolicy
) -> tuple[dict[str, list[Instance]], list[str]]:
    """Masks of the classes that phrases can be made about in an image.

    Returns:
        Instances by clean class name, in the order of the annotation ids, classes sorted by
        name: only classes that are complete, and that the policy neither leaves unnamed nor
        finds to cover another annotated class. And the faults of single annotations, each of
        which makes its class incomplete here.
    """
    found: dict[str, list[Instance]] = {}
    annotated, faults = set(), []
    dropped = {clean_category_name(categories[key]) for key in row.incomplete if key in categories}
    for annotation in row.annotations:
        name = clean_category_name(categories[annotation["category_id"]])
        annotated.add(name)
        if annotation.get("iscrowd"):
            dropped.add(name)
            continue
        try:
            mask = decode_segmentation(annotation["segmentation"], row.height, row.width)
        except ValueError as error:
            faults.append(f"annotation {annotation['id']} of image {row.image_id}: {error}")
            dropped.add(name)
            continue
        found.setdefault(name, []).append(instance_of(mask))
    dropped |= policy.unnamed
    dropped |= {name for name in found if policy.covers.get(name, frozenset()) & annotated}
    return {name: found[name] for name in sorted(found) if name not in dropped}, faults


def instance_of(mask: npt.NDArray[np.bool_]) -> Instance:
    """The instance of a mask (H, W) with at least one pixel."""
    ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = (float(xs[0]), float(ys[0]), float(xs[-1] + 1), float(ys[-1] + 1))
    return Instance(mask, int(mask.sum()), box)


def decode_segmentation(segmentation: Any, height: int, width: int) -> npt.NDArray[np.bool_]:
    """COCO polygons or run lengths, compressed or not, to (H, W) bool.

    Raises ValueError where it is broken or empty.
    """
    try:
        if isinstance(segmentation, list):
            rle = mask_api.merge(mask_api.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            rle = mask_api.frPyObjects(segmentation, height, width)
        else:
            rle = segmentation
        mask = np.asarray(mask_api.decode(rle), dtype=bool)
    except Exception as error:  # pycocotools raises bare Exception for malformed input
        raise ValueError(f"segmentation cannot be decoded ({error})") from error
    if mask.shape != (height, width):
        raise ValueError(f"mask is {mask.shape}, the image {(height, width)}")
    if not mask.any():
        raise ValueError("mask is empty")
    return mask


def _load_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"no annotation file at {path}; give a COCO-format JSON file") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); give a COCO-format JSON file") from error
    tables = ("images", "annotations", "categories")
    if not isinstance(content, dict) or any(not isinstance(content.get(t), list) for t in tables):
        raise ValueError(f"{path} lacks one of the COCO tables {', '.join(tables)}")
    return content
