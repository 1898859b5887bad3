"""What a phrase store holds about a photo: its record, phrases and objects, masks as run lengths.

H, W = the photo's sides in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as mask_api


@dataclass(frozen=True)
class ImageRecord:
    """One photo of the store. Sizes in pixels.

    coco_id: the photo's number in COCO, where it is one; data sets that share photos are told
        apart from each other by it (see `data.sampling`).
    """

    image_id: str
    split: str
    source: str
    height: int
    width: int
    n_phrases: int
    coco_id: int | None = None


@dataclass(frozen=True)
class PhraseRecord:
    """One phrase about a photo.

    Attributes:
        phrase: what a person says, "the dog on the left".
        kind: one of `instances.KINDS`, or what the data set calls it (PhraseCut: "name",
            "attribute", "relation", "verbose"; RefCOCO: "referring").
        class_name: the bare noun, for the class-name-only ablation.
        rle: COCO compressed run lengths of the target, {"size": [H, W], "counts": str}.
        discriminative: the target is a proper subset of its class's instances in the photo.
        swapped: the phrase with left and right exchanged; None when it holds neither word.
        swapped_rle: the mask of `swapped`; None when nothing matches it or it is not decided. It
            can equal `rle`: the second of three is the second from both sides.
        group: equal for the phrases about one class in one photo (siblings).
        task_id: the data set's own name of this phrase, as its scoring tool wants it; "" if none.
        subsets: the data set's evaluation subsets that the phrase belongs to, "all" not among them.
        matched: which of the photo's objects the phrase means, () for none of them; None where the
            data set does not tell objects apart.
        anchors: the objects that it names to say where its target is ("the laptop" in "the cup
            left of the laptop").
    """

    phrase: str
    kind: str
    class_name: str
    rle: Mapping[str, Any]
    discriminative: bool
    swapped: str | None
    swapped_rle: Mapping[str, Any] | None
    group: int
    task_id: str = ""
    subsets: Sequence[str] = ()
    matched: Sequence[int] | None = None
    anchors: Sequence[int] = ()


@dataclass(frozen=True)
class ObjectRecord:
    """One annotated thing of a photo, of a class that is complete there.

    group: as in the phrases about its class. rle: its mask, as in `PhraseRecord`.
    """

    class_name: str
    group: int
    rle: Mapping[str, Any]


def encode_rle(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """COCO compressed run lengths of a mask (H, W), JSON-ready."""
    rle = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_rle(rle: Mapping[str, Any]) -> npt.NDArray[np.bool_]:
    """Mask (H, W) bool of COCO compressed run lengths."""
    return np.asarray(mask_api.decode({"size": rle["size"], "counts": rle["counts"]}), dtype=bool)
