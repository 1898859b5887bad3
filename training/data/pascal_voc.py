"""Reading PASCAL VOC's segmentations: palette PNGs of objects and of classes.

A pixel of `SegmentationObject` is 0 for background, 255 for void, else the number of an object;
`SegmentationClass` says which of the twenty classes is there. *Void* is the seam drawn around
every object, and whatever the annotators left undecided (difficult objects). It is in no mask
here, so masks end at the seam's inner side.

An object that is void is annotated by its box alone, in `Annotations`. Its class is then not
complete in the photo, and no phrase is made about that class (see `coco_annotations`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from training.data.coco_annotations import Instance, instance_of

SPLITS = {"train": "train", "val": "val", "test": "test", "trainval": "train"}
"""Image lists and the split that their photos get; `trainval` is for training on everything."""

CLASSES = (
    "airplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "dining table",
    "dog",
    "horse",
    "motorcycle",
    "person",
    "potted plant",
    "sheep",
    "couch",
    "train",
    "tv",
)
"""Classes 1 to 20 by the names that COCO has for the same things, so that the phrase rules, which
go by these names, treat both sets alike. VOC's own names are in `_OWN_NAMES`."""

_OWN_NAMES = {
    "aeroplane": "airplane",
    "diningtable": "dining table",
    "motorbike": "motorcycle",
    "pottedplant": "potted plant",
    "sofa": "couch",
    "tvmonitor": "tv",
}
VOID = 255


@dataclass(frozen=True)
class VocImage:
    """A photo by its name, and the split it is stored in."""

    name: str
    split: str


def read_image_lists(root: Path, splits: tuple[str, ...]) -> list[VocImage]:
    """The photos of some of the lists in ImageSets/Segmentation, in the lists' order.

    Raises:
        ValueError: an unknown list, a missing file, or a photo in two of the lists.
    """
    images: dict[str, VocImage] = {}
    for split in splits:
        if split not in SPLITS:
            raise ValueError(f"unknown image list {split!r}; use some of {', '.join(SPLITS)}")
        path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
        try:
            names = path.read_text(encoding="utf-8").split()
        except FileNotFoundError:
            raise ValueError(
                f"no file {path}; give the folder that holds ImageSets, such as VOCdevkit/VOC2012"
            ) from None
        for name in names:
            if name in images:
                raise ValueError(
                    f"{name} is twice in the lists {', '.join(splits)}; trainval repeats train "
                    "and val"
                )
            images[name] = VocImage(name, SPLITS[split])
    return list(images.values())


def decode_objects(
    objects: npt.NDArray[np.uint8], classes: npt.NDArray[np.uint8]
) -> dict[str, list[Instance]]:
    """Instances by class name, classes sorted, in the order of the object numbers.

    Args:
        objects, classes: the two PNGs' indices (H, W) of one size. An object's class is that of
            most of its pixels.

    Raises:
        ValueError: sizes differ, or an object has no class or an unknown one.
    """
    if objects.shape != classes.shape:
        raise ValueError(f"objects are {objects.shape}, classes {classes.shape}")
    found: dict[str, list[Instance]] = {}
    for number in np.unique(objects):
        if number in (0, VOID):
            continue
        mask = objects == number
        votes = Counter(classes[mask].tolist())
        votes.pop(VOID, None)
        index = max(votes, key=lambda each: votes[each], default=0)
        if not 1 <= index <= len(CLASSES):
            raise ValueError(f"object {number} has class {index}, which is none of the twenty")
        found.setdefault(CLASSES[index - 1], []).append(instance_of(mask))
    return {name: found[name] for name in sorted(found)}


def count_annotated(path: Path) -> Counter[str]:
    """Objects by class name in a file of `Annotations`, difficult ones too; empty without a file.

    Raises ValueError where the file is not readable XML.
    """
    try:
        tree = ElementTree.parse(path)
    except FileNotFoundError:
        return Counter()
    except (OSError, ElementTree.ParseError) as error:
        raise ValueError(f"{path.name} cannot be read ({error})") from error
    names = [element.findtext("name", "").strip() for element in tree.iterfind("object")]
    return Counter(_OWN_NAMES.get(name, name) for name in names)


def read_indices(path: Path) -> npt.NDArray[np.uint8]:
    """The palette indices (H, W) uint8 of a PNG.

    Raises ValueError where it is missing, broken, or not a palette (or grey) image.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise ValueError(f"{path.name} has colours ({image.mode}), not palette indices")
            return np.array(image)
    except FileNotFoundError:
        raise ValueError(f"no file {path.parent.name}/{path.name}") from None
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path.parent.name}/{path.name} cannot be read ({error})") from error
