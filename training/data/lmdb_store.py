"""The phrase store: photos, phrases and masks in one LMDB file, without pickle.

Keys and values (UTF-8 JSON except the photos):

    meta            format, format_version, finished, fingerprint, progress
    index           written last, in image order: [[image_id, split, source, n_phrases, coco_id],
                    ...]
    splits          written with it: {split: [image_id, ...]}, images that belong to a split
                    besides the one in their record (PhraseCut: "val_miniv" is "val" and "miniv")
    image/<id>      height, width, split, source, n_phrases
    jpeg/<id>       the photo's bytes, as they are in its file
    phrases/<id>    list of phrases, masks as COCO run lengths
    objects/<id>    list of annotated objects, where the data set tells objects apart

An image is stored once and shared by its phrases. The writer commits whole images in batches, so
that a killed run continues after the last batch; readers refuse a store that is not finished.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any

import lmdb
import numpy as np
import numpy.typing as npt
from PIL import Image

from training.data.lmdb_file import (
    REMAKE,
    StoreError,
    check_file,
    is_read_here,
    lock_for_writing,
    shared_environment,
    used_bytes,
)
from training.data.phrase_records import ImageRecord as ImageRecord
from training.data.phrase_records import ObjectRecord
from training.data.phrase_records import PhraseRecord as PhraseRecord
from training.data.phrase_records import decode_rle as decode_rle
from training.data.phrase_records import encode_rle as encode_rle

FORMAT = "segvlm-phrases"
FORMAT_VERSION = 2
_META, _INDEX, _SPLITS = b"meta", b"index", b"splits"
_INITIAL_MAP_SIZE = 64 << 20
_NO_SPLITS: Mapping[str, Collection[str]] = MappingProxyType({})
_NO_OBJECTS: Mapping[str, Sequence[ObjectRecord]] = MappingProxyType({})


class PhraseStoreWriter:
    """Writes a store in batches of images; the file may be the rest of a killed run.

    Args:
        path: the LMDB file (not a folder); its folder is made.
        fingerprint: what the content follows from. A store with another one is refused.

    Raises:
        StoreError: `path` holds something else, or a store made from other input.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any]) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = lock_for_writing(path)
        try:
            if is_read_here(path):
                raise StoreError(f"{path} is open for reading in this process; drop its reader")
            if path.stat().st_size:
                check_file(path)
            # The file lock above excludes other writers, so LMDB needs no lock file of its own.
            self._environment = lmdb.open(
                str(path), subdir=False, lock=False, map_size=_INITIAL_MAP_SIZE, readahead=False
            )
            self._meta = self._begin(fingerprint)
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> PhraseStoreWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def finished(self) -> bool:
        """Whether an earlier run has completed this store."""
        return bool(self._meta["finished"])

    @property
    def progress(self) -> dict[str, Any] | None:
        """What the last `add` passed as `progress`; None in a new store."""
        progress: dict[str, Any] | None = self._meta["progress"]
        return progress

    def add(
        self,
        batch: Sequence[tuple[ImageRecord, bytes, Sequence[PhraseRecord]]],
        progress: Mapping[str, Any],
        objects: Mapping[str, Sequence[ObjectRecord]] = _NO_OBJECTS,
    ) -> None:
        """Commit images with their phrases, and the progress to continue from, as one step.

        objects: by image id, of images whose phrases say which objects they mean.
        """
        items = []
        for record, jpeg, phrases in batch:
            key = record.image_id
            assert record.n_phrases == len(phrases)
            items.append((_key("image", key), _to_json(asdict(record))))
            items.append((_key("jpeg", key), jpeg))
            items.append((_key("phrases", key), _to_json([asdict(phrase) for phrase in phrases])))
            if key in objects:
                rows = [asdict(each) for each in objects[key]]
                items.append((_key("objects", key), _to_json(rows)))
        meta = {**self._meta, "progress": dict(progress)}
        self._commit([*items, (_META, _to_json(meta))])
        self._meta = meta

    def finish(
        self,
        image_ids: Iterable[str],
        progress: Mapping[str, Any],
        further_splits: Mapping[str, Collection[str]] = _NO_SPLITS,
    ) -> None:
        """Write the index of the stored ones of `image_ids`, in their order; mark as finished.

        further_splits: image ids by split, for images in more splits than their record's own.
        """
        rows = []
        for image_id in image_ids:
            image = self._get_json(_key("image", image_id))
            if image is not None:
                keys = ("split", "source", "n_phrases", "coco_id")
                rows.append([image_id, *(image[key] for key in keys)])
        meta = {**self._meta, "finished": True, "progress": dict(progress)}
        stored = {row[0] for row in rows}
        further = {
            split: [image_id for image_id in ids if image_id in stored]
            for split, ids in further_splits.items()
        }
        items = [(_INDEX, rows), (_SPLITS, further), (_META, meta)]
        self._commit([(key, _to_json(value)) for key, value in items])
        self._meta = meta
        self._environment.sync(True)

    def close(self) -> None:
        """Close the file and let other writers have it."""
        self._environment.close()
        os.close(self._lock)

    def _begin(self, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
        """The meta record of the store that is continued, or a new one."""
        meta = self._get_json(_META)
        if meta is None:
            if self._environment.stat()["entries"]:
                raise StoreError(f"{self.path} is another LMDB file; choose another output path")
            meta = {
                "format": FORMAT,
                "format_version": FORMAT_VERSION,
                "finished": False,
                "fingerprint": dict(fingerprint),
                "progress": None,
            }
            self._commit([(_META, _to_json(meta))])
        elif _checked_meta(self.path, meta)["fingerprint"] != dict(fingerprint):
            raise StoreError(
                f"{self.path} was made from other annotations, another seed or other rules; "
                "delete it or choose another output path"
            )
        return dict(meta)

    def _get_json(self, key: bytes) -> Any:
        with self._environment.begin() as transaction:
            value = transaction.get(key)
        return None if value is None else json.loads(bytes(value))

    def _commit(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        try:
            self._write(items)
        except (lmdb.Error, OSError) as error:
            raise StoreError(
                f"{self.path} cannot be written ({error}); make room on its disk and run the same "
                "command again, it continues where it stopped"
            ) from error

    def _write(self, items: Sequence[tuple[bytes, bytes]]) -> None:
        while True:
            try:
                with self._environment.begin(write=True) as transaction:
                    for key, value in items:
                        transaction.put(key, value)
                break
            except lmdb.MapFullError:
                self._environment.set_mapsize(self._environment.info()["map_size"] * 2)
        # LMDB need not write unused pages at the end, but readers' size check counts them.
        used = used_bytes(self._environment)
        if self.path.stat().st_size < used:
            os.truncate(self.path, used)


class PhraseStore:
    """Reads a finished store; safe to use in forked and spawned workers, and to pickle.

    Args:
        path: the LMDB file.

    Raises:
        StoreError: no store there, unfinished, truncated, foreign, or of another version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._open()

    def __getstate__(self) -> dict[str, str]:
        return {"path": str(self.path)}

    def __setstate__(self, state: dict[str, str]) -> None:
        self.path = Path(state["path"])
        self._open()

    def __len__(self) -> int:
        """Number of images."""
        return len(self._rows)

    def image_ids(self, split: str, sources: Collection[str] | None = None) -> list[str]:
        """Ids of a split's images in stored order, of the given sources or of all."""
        further = self._further_splits.get(split, frozenset())
        return [
            image_id
            for image_id, its_split, source, *_ in self._rows
            if (its_split == split or image_id in further)
            and (sources is None or source in sources)
        ]

    def phrase_count(self, image_id: str) -> int:
        """Number of phrases of an image, from memory."""
        return self._counts[image_id]

    def coco_id(self, image_id: str) -> int | None:
        """The image's number in COCO, from memory; None where it is not a COCO photo."""
        return self._coco_ids[image_id]

    @property
    def splits(self) -> list[str]:
        """Names of the splits that hold images, sorted."""
        return sorted({row[1] for row in self._rows} | self._further_splits.keys())

    def image(self, image_id: str) -> ImageRecord:
        """Raises KeyError for an unknown id."""
        return ImageRecord(**json.loads(self._get("image", image_id)))

    def jpeg(self, image_id: str) -> bytes:
        """The photo's file content. Raises KeyError for an unknown id."""
        return self._get("jpeg", image_id)

    def photo(self, image_id: str) -> npt.NDArray[np.uint8]:
        """The photo's pixels, uint8 RGB (H, W, 3), as they are stored (no EXIF orientation).

        Raises KeyError for an unknown id, StoreError if the size is not the record's.
        """
        with Image.open(io.BytesIO(self.jpeg(image_id))) as photo:
            pixels = np.asarray(photo.convert("RGB"))
        record = self.image(image_id)
        if pixels.shape[:2] != (record.height, record.width):
            raise StoreError(
                f"the photo of image {image_id!r} is {pixels.shape[0]} x {pixels.shape[1]} but its "
                f"record says {record.height} x {record.width}; prepare the store again"
            )
        return pixels

    def phrases(self, image_id: str) -> list[PhraseRecord]:
        """All phrases of an image. Raises KeyError for an unknown id."""
        rows = json.loads(self._get("phrases", image_id))
        return [_phrase_of(row) for row in rows]

    def objects(self, image_id: str) -> list[ObjectRecord] | None:
        """All annotated objects of an image, which its phrases count in; None where it has none."""
        try:
            rows = json.loads(self._get("objects", image_id))
        except KeyError:
            return None
        return [ObjectRecord(**row) for row in rows]

    def metadata(self) -> dict[str, Any]:
        """The meta record: format, fingerprint of the input, progress and report of the making."""
        return dict(self._meta)

    def _open(self) -> None:
        self._process = os.getpid()
        self._file, self._environment = shared_environment(self.path)
        with self._environment.begin() as transaction:
            meta, index = transaction.get(_META), transaction.get(_INDEX)
            further = transaction.get(_SPLITS, b"{}")
        if meta is None:
            raise StoreError(f"{self.path} is an LMDB file but no phrase store; {REMAKE}")
        self._meta: dict[str, Any] = _checked_meta(self.path, json.loads(meta))
        if not self._meta["finished"] or index is None:
            raise StoreError(
                f"{self.path} is not finished; run the same `python -m training prepare` command "
                "again, it continues where it stopped"
            )
        self._rows: list[list[Any]] = json.loads(index)
        self._further_splits: dict[str, frozenset[str]] = {
            split: frozenset(ids) for split, ids in json.loads(further).items() if ids
        }
        self._counts: dict[str, int] = {row[0]: row[3] for row in self._rows}
        self._coco_ids: dict[str, int | None] = {row[0]: row[4] for row in self._rows}

    def _get(self, table: str, image_id: str) -> bytes:
        if self._process != os.getpid():
            self._reopen_after_fork()
        with self._environment.begin() as transaction:
            value = transaction.get(_key(table, image_id))
        if value is None:
            raise KeyError(f"{self.path} holds no image {image_id!r}")
        return bytes(value)

    def _reopen_after_fork(self) -> None:
        file, environment = shared_environment(self.path)
        if file != self._file:
            raise StoreError(f"{self.path} was replaced while it was in use; start again")
        self._environment, self._process = environment, os.getpid()


def _checked_meta(path: Path, meta: dict[str, Any]) -> dict[str, Any]:
    if meta.get("format") != FORMAT:
        raise StoreError(f"{path} is an LMDB file but no phrase store; {REMAKE}")
    if meta.get("format_version") != FORMAT_VERSION:
        raise StoreError(
            f"{path} has format version {meta.get('format_version')}, this program reads "
            f"{FORMAT_VERSION}; delete it and {REMAKE}"
        )
    return meta


def _phrase_of(row: dict[str, Any]) -> PhraseRecord:
    """A phrase from its JSON, whose lists are tuples here; older stores lack the newer fields."""
    lists = {"subsets": (), "matched": None, "anchors": ()}
    found = {name: row.get(name, default) for name, default in lists.items()}
    return PhraseRecord(**{**row, **{n: v if v is None else tuple(v) for n, v in found.items()}})


def _key(table: str, image_id: str) -> bytes:
    return f"{table}/{image_id}".encode()


def _to_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
