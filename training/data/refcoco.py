"""Reading RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO: who refers to what, with which sentences.

The files are `refs(unc).p`, `refs(umd).p`, `refs(google).p`: a pickled list of refs with ref_id,
image_id, ann_id, split and sentences [{sent_id, sent, raw}]; gRefCOCO has the same as JSON, where
`ann_id` is a list, with -1 for nothing. The masks are in `instances.json`, in COCO's format.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import Any

from training.data.restricted_pickle import load_plain_pickle

_NO_TARGET = -1
_SPLIT_NAME = re.compile(r"\w+")


@dataclass(frozen=True)
class Sentence:
    """One expression as people wrote it, lower case in most of the sets."""

    sent_id: int
    text: str


@dataclass(frozen=True)
class Ref:
    """One referent with its sentences.

    ann_ids: the annotations that are meant, together; empty where the sentences are about nothing
        in the photo (gRefCOCO).
    """

    ref_id: int
    image_id: int
    split: str
    ann_ids: tuple[int, ...]
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True)
class RefFile:
    """A read file: refs in the order of their ids, and the faults of those left out."""

    refs: tuple[Ref, ...]
    faults: tuple[str, ...]


@dataclass(frozen=True)
class PublishedSplit:
    """Numbers of images and sentences; images None where nobody states them."""

    images: int | None
    sentences: int


PUBLISHED: Mapping[tuple[str, str], Mapping[str, PublishedSplit]] = {
    ("refcoco", "unc"): {
        "train": PublishedSplit(16994, 120624),
        "val": PublishedSplit(1500, 10834),
        "testA": PublishedSplit(750, 5657),
        "testB": PublishedSplit(750, 5095),
    },
    ("refcoco+", "unc"): {
        "train": PublishedSplit(16992, 120191),
        "val": PublishedSplit(1500, 10758),
        "testA": PublishedSplit(750, 5726),
        "testB": PublishedSplit(750, 4889),
    },
    ("refcocog", "umd"): {
        "train": PublishedSplit(21899, 80512),
        "val": PublishedSplit(1300, 4896),
        "test": PublishedSplit(2600, 9602),
    },
    ("refcocog", "google"): {
        "train": PublishedSplit(None, 85474),
        "val": PublishedSplit(None, 9536),
    },
}
"""By the set's name and its split's author, as in refcoco/refs(unc).p."""


def published_key(refs: Path, name: str) -> tuple[str, str]:
    """The key of `PUBLISHED` that a refs file of the set `name` would have."""
    author = re.search(r"\((\w+)\)", refs.name)
    return name, author[1] if author else ""


def read_refs(path: Path) -> RefFile:
    """Read a refs file, a pickle or (by its suffix .json) JSON.

    Raises:
        ValueError: the file is missing, broken, no list, or names code to run. Single faulty refs
            do not raise: they are left out and listed in `faults`, and so are sentences.
    """
    content = _load_json(path) if path.suffix == ".json" else load_plain_pickle(path)
    if not isinstance(content, list):
        raise ValueError(f"{path} holds no list of refs; give a file such as refs(unc).p")
    refs: dict[int, Ref] = {}
    faults: list[str] = []
    for place, row in enumerate(content):
        try:
            ref = _ref(row, faults)
        except (KeyError, TypeError, ValueError) as error:
            named = short(row.get("ref_id", "?")) if isinstance(row, dict) else "?"
            reason = f"no {error.args[0]}" if isinstance(error, KeyError) else str(error)
            faults.append(f"ref {named} (entry {place}): {reason}")
            continue
        if ref.ref_id in refs:
            faults.append(f"ref {ref.ref_id} (entry {place}): this id is taken")
        elif ref.sentences:
            refs[ref.ref_id] = ref
        else:
            faults.append(f"ref {ref.ref_id} (entry {place}): no sentence")
    return RefFile(tuple(refs[key] for key in sorted(refs)), tuple(faults))


def _ref(row: Any, faults: list[str]) -> Ref:
    """Raises KeyError, TypeError, ValueError where the row is no ref; faulty sentences are left
    out and listed."""
    if not isinstance(row, dict):
        raise TypeError("not a dict")
    ref_id = _whole(row, "ref_id")
    split = row["split"]
    if not isinstance(split, str) or not _SPLIT_NAME.fullmatch(split):
        raise ValueError(f"{short(split)} is no name of a split")
    sentences: dict[int, Sentence] = {}
    for entry in row["sentences"]:
        sent_id = _whole(entry, "sent_id")
        text = _text(entry)
        if not text:
            faults.append(f"sentence {sent_id} of ref {ref_id}: no words")
        elif sent_id in sentences:
            faults.append(f"sentence {sent_id} of ref {ref_id}: this id is taken")
        else:
            sentences[sent_id] = Sentence(sent_id, text)
    return Ref(
        ref_id=ref_id,
        image_id=_whole(row, "image_id"),
        split=split,
        ann_ids=_ann_ids(row["ann_id"]),
        sentences=tuple(sentences.values()),
    )


def _text(entry: Mapping[str, Any]) -> str:
    """`sent`, the cleaned text, or else `raw`; blanks in a row become one."""
    for key in ("sent", "raw"):
        value = entry.get(key)
        if isinstance(value, str) and value.strip():
            return " ".join(value.split())
    return ""


def _ann_ids(value: Any) -> tuple[int, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    ids = [each for each in values if each is not None and each != _NO_TARGET]
    if not all(isinstance(each, int) for each in ids):
        raise ValueError(f"ann_id {short(value)} is no whole number and no list of them")
    return tuple(dict.fromkeys(ids))


def _whole(row: Any, key: str) -> int:
    if not isinstance(row, dict):
        raise TypeError(f"{short(row)} is not a dict")
    if not isinstance(row[key], int):
        raise ValueError(f"{key} {short(row[key])} is no whole number")
    return int(row[key])


def _load_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"no file at {path}") from None
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
