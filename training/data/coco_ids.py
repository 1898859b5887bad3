"""Which photos of an annotation file are COCO's, and under which number.

Data sets that took their photos from COCO share images with each other, so a test photo of one
can train another. The number by which COCO knows a photo (it is the same in COCO 2014 and 2017)
tells them apart; see `ImageRecord.coco_id`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

COCO_ID_MODES = ("auto", "image-id", "none")
"""`auto`: what the file itself says, see `coco_id_of`. `image-id`: every image is COCO's, its id
is COCO's. `none`: no image is COCO's."""

_OFFICIAL_SITES = ("cocodataset.org", "mscoco.org")
_PLAIN_NAME = re.compile(r"(\d{12})\.\w+")
_COCO_NAME = re.compile(r"coco_(?:[a-z]+\d{4}_)?(\d{12})\.\w+", re.IGNORECASE)


def is_official(info: Any) -> bool:
    """Whether the `info` table of an annotation file names COCO's own site as its origin."""
    url = str(info.get("url", "")) if isinstance(info, Mapping) else ""
    return any(site in url for site in _OFFICIAL_SITES)


def coco_id_of(row: Mapping[str, Any], mode: str, *, official: bool) -> int | None:
    """The number of an image row's photo in COCO; None where it is no COCO photo.

    In mode `auto` the first of these decides:

    1. the field `coco_id` (null: not a COCO photo);
    2. the number that ends `coco_url`;
    3. a file name COCO_train2014_000000000009.jpg or coco_000000000009.jpg;
    4. a file name 000000000009.jpg, if the file is `official`.

    Raises ValueError where the number is to be given and is no whole number.
    """
    assert mode in COCO_ID_MODES
    if mode == "none":
        return None
    if mode == "image-id" or "coco_id" in row:
        return _whole_number(row["id" if mode == "image-id" else "coco_id"])
    names = (
        (row.get("coco_url"), _PLAIN_NAME),
        (row.get("coco_url"), _COCO_NAME),
        (row.get("file_name"), _COCO_NAME),
        (row.get("file_name") if official else None, _PLAIN_NAME),
    )
    for name, pattern in names:
        found = pattern.fullmatch(PurePosixPath(str(name)).name) if name else None
        if found:
            return int(found[1])
    return None


def note_of_coco_photos(coco_ids: Sequence[int | None]) -> str:
    """A line for a report, so that a person sees whether COCO's photos were recognised."""
    known = sum(coco_id is not None for coco_id in coco_ids)
    return f"photos known to be COCO's: {known} of {len(coco_ids)}"


def _whole_number(value: Any) -> int | None:
    if value is None or isinstance(value, int):
        return value
    if isinstance(value, str) and value.isdecimal():
        return int(value)
    raise ValueError(f"{value!r} is no COCO id, which is a whole number")
