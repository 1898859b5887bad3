"""The phrase store: round trip, worker processes, and files that are not stores."""

from __future__ import annotations

import json
import multiprocessing
import os
import pickle
import resource
import subprocess
import sys
from pathlib import Path

import lmdb
import numpy as np
import pytest

from training.data import lmdb_store
from training.data.lmdb_store import (
    ImageRecord,
    PhraseRecord,
    PhraseStore,
    PhraseStoreWriter,
    StoreError,
    decode_rle,
    encode_rle,
)

FINGERPRINT = {"maker": "test", "seed": 0}


def phrase_record(text: str) -> PhraseRecord:
    mask = np.zeros((5, 7), dtype=bool)
    mask[1:3, 2:6] = True
    return PhraseRecord(
        phrase=text,
        kind="position",
        class_name="dog",
        rle=encode_rle(mask),
        discriminative=True,
        swapped="the right dog",
        swapped_rle=None,
        group=3,
    )


def items(count: int, jpeg_bytes: int = 10) -> list[tuple[ImageRecord, bytes, list[PhraseRecord]]]:
    made = []
    for index in range(count):
        split, source = ("train", "a") if index % 3 else ("val", "b")
        record = ImageRecord(f"{index}", split, source, 5, 7, 2)
        phrases = [phrase_record(f"the left dog {index}"), phrase_record("hund, größer")]
        made.append((record, bytes([index % 256]) * jpeg_bytes, phrases))
    return made


def write_store(path: Path, count: int = 6, jpeg_bytes: int = 10) -> Path:
    made = items(count, jpeg_bytes)
    with PhraseStoreWriter(path, FINGERPRINT) as writer:
        writer.add(made, {"next": count})
        writer.finish([record.image_id for record, _, _ in made], {"next": count})
    return path


@pytest.fixture
def store_path(tmp_path: Path) -> Path:
    return write_store(tmp_path / "store.lmdb")


def test_what_goes_in_comes_out(store_path: Path) -> None:
    store = PhraseStore(store_path)
    assert len(store) == 6
    assert store.image_ids("val") == ["0", "3"]
    assert store.image_ids("train") == ["1", "2", "4", "5"]
    assert store.image_ids("train", sources=("b",)) == []
    for record, jpeg, phrases in items(6):
        assert store.image(record.image_id) == record
        assert store.jpeg(record.image_id) == jpeg
        assert store.phrases(record.image_id) == phrases
        assert store.phrase_count(record.image_id) == 2
    assert store.metadata()["fingerprint"] == FINGERPRINT
    with pytest.raises(KeyError, match="no image 'x'"):
        store.image("x")


def test_only_one_file_is_left_beside_nothing(store_path: Path) -> None:
    assert [path.name for path in store_path.parent.iterdir()] == ["store.lmdb"]


@pytest.mark.parametrize("shape", [(1, 1), (5, 7), (64, 33)])
def test_rle_round_trip(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for share in (0.0, 0.3, 1.0):
        mask = rng.random(shape) < share
        rle = json.loads(json.dumps(encode_rle(mask)))
        decoded = decode_rle(rle)
        assert decoded.dtype == bool
        np.testing.assert_array_equal(decoded, mask)


def test_two_readers_of_one_file(store_path: Path) -> None:
    first, second = PhraseStore(store_path), PhraseStore(store_path)
    assert first.jpeg("2") == second.jpeg("2")


def test_pickling_keeps_only_the_path(store_path: Path) -> None:
    store = PhraseStore(store_path)
    copy = pickle.loads(pickle.dumps(store))
    assert copy.phrases("4") == store.phrases("4")
    assert len(pickle.dumps(store)) < 400


_READERS = """
import multiprocessing, sys

from training.data.lmdb_store import PhraseStore


def read_all(store):
    return [store.jpeg(str(index)) for index in range(6)]


def put_all(store, queue):
    queue.put(read_all(store))


if __name__ == "__main__":
    path, method = sys.argv[1:]
    context = multiprocessing.get_context(method)
    store = PhraseStore(path)
    wanted = read_all(store)
    with context.Pool(2) as pool:
        for found in pool.map(read_all, [store] * 3):
            assert found == wanted
    if method == "fork":  # no pickling: the child holds the very object, its environment in it
        queue = context.Queue()
        child = context.Process(target=put_all, args=(store, queue))
        child.start()
        assert queue.get() == wanted
        child.join()
        assert child.exitcode == 0
    assert read_all(store) == wanted
    print("read")
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_read_a_store_opened_before(
    store_path: Path, method: str, tmp_path: Path, repo_root: Path
) -> None:
    """In a process of its own: this one has threads, and their locks would be copied by a fork."""
    script = tmp_path / "readers.py"
    script.write_text(_READERS, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, str(script), str(store_path), method],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "PYTHONPATH": str(repo_root)},
    )
    assert (done.stdout, done.returncode) == ("read\n", 0), done.stderr


def test_the_map_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmdb_store, "_INITIAL_MAP_SIZE", 1 << 16)
    store = PhraseStore(write_store(tmp_path / "big.lmdb", count=6, jpeg_bytes=200_000))
    assert store.jpeg("5") == bytes([5]) * 200_000


def test_an_unfinished_store_is_refused_and_continued(tmp_path: Path) -> None:
    path = tmp_path / "store.lmdb"
    made = items(4)
    with PhraseStoreWriter(path, FINGERPRINT) as writer:
        assert writer.progress is None
        writer.add(made[:2], {"next": 2})
    with pytest.raises(StoreError, match=r"not finished; run the same .*prepare"):
        PhraseStore(path)
    with PhraseStoreWriter(path, FINGERPRINT) as writer:
        assert not writer.finished and writer.progress == {"next": 2}
        writer.add(made[2:], {"next": 4})
        writer.finish(["0", "1", "2", "3", "never stored"], {"next": 4})
    assert len(PhraseStore(path)) == 4


def test_an_image_in_several_splits_is_stored_once(tmp_path: Path) -> None:
    path = tmp_path / "store.lmdb"
    made = items(6)
    further = {"whole": ["5", "0", "never stored"], "val": ["2"], "empty": ["never stored"]}
    with PhraseStoreWriter(path, FINGERPRINT) as writer:
        writer.add(made, {})
        writer.finish([record.image_id for record, _, _ in made], {}, further)
    store = pickle.loads(pickle.dumps(PhraseStore(path)))
    assert len(store) == 6
    assert store.splits == ["train", "val", "whole"]
    assert store.image_ids("whole") == ["0", "5"]  # in stored order
    assert store.image_ids("val") == ["0", "2", "3"]
    assert store.image_ids("val", sources=("a",)) == ["2"]
    assert store.image_ids("train") == ["1", "2", "4", "5"]
    assert store.image("2").split == "train"


def _write_on_a_full_disk(path: Path, queue: multiprocessing.Queue[str]) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    try:
        write_store(path, jpeg_bytes=100_000)
    except StoreError as error:
        queue.put(str(error))
    except BaseException as error:
        queue.put(f"not refused: {error!r}")


def test_a_full_disk_ends_with_one_line_and_a_later_run_continues(tmp_path: Path) -> None:
    path = tmp_path / "store.lmdb"
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_write_on_a_full_disk, args=(path, queue))
    child.start()
    said = queue.get(timeout=60)
    child.join(60)
    assert "cannot be written" in said and "make room on its disk" in said
    assert PhraseStore(write_store(path)).phrase_count("5") == 2


def test_a_store_of_other_input_is_refused(store_path: Path) -> None:
    with pytest.raises(StoreError, match="delete it or choose another"):
        PhraseStoreWriter(store_path, {**FINGERPRINT, "seed": 1})
    PhraseStoreWriter(store_path, FINGERPRINT).close()  # the refusal left no lock behind


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "store.lmdb"
    with (
        PhraseStoreWriter(path, FINGERPRINT),
        pytest.raises(StoreError, match="another process is writing"),
    ):
        PhraseStoreWriter(path, FINGERPRINT)


def test_a_file_that_is_read_here_is_not_written(store_path: Path) -> None:
    store = PhraseStore(store_path)
    with pytest.raises(StoreError, match="open for reading in this process"):
        PhraseStoreWriter(store_path, FINGERPRINT)
    del store
    PhraseStoreWriter(store_path, FINGERPRINT).close()


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no phrase store at .*prepare"):
        PhraseStore(tmp_path / "none.lmdb")
    assert not list(tmp_path.iterdir())


def test_a_folder_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is a folder"):
        PhraseStore(tmp_path)
    with pytest.raises(StoreError, match="cannot be written"):
        PhraseStoreWriter(tmp_path, FINGERPRINT)


@pytest.mark.parametrize("content", [b"", b"x", b"a text file\n" * 2000, bytes(20_000)])
def test_foreign_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "store.lmdb"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="no phrase store"):
        PhraseStore(path)
    if content:
        with pytest.raises(StoreError, match="no phrase store"):
            PhraseStoreWriter(path, FINGERPRINT)
        assert path.read_bytes() == content


@pytest.mark.parametrize("kept", [100, 5000, 0.5, 0.95])
def test_truncated(tmp_path: Path, kept: float) -> None:
    """Without the check these would end the process with SIGBUS."""
    path = write_store(tmp_path / "store.lmdb", jpeg_bytes=50_000)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(int(kept * size) if kept < 1 else int(kept))
    with pytest.raises(StoreError, match=r"(truncated|damaged).*prepare"):
        PhraseStore(path)


def _put(path: Path, key: bytes, value: bytes) -> None:
    with (
        lmdb.open(str(path), subdir=False, lock=False) as environment,
        environment.begin(write=True) as transaction,
    ):
        transaction.put(key, value)


def test_another_lmdb_file(tmp_path: Path) -> None:
    path = tmp_path / "other.lmdb"
    _put(path, b"key", b"value")
    with pytest.raises(StoreError, match="no phrase store"):
        PhraseStore(path)
    with pytest.raises(StoreError, match="another LMDB file"):
        PhraseStoreWriter(path, FINGERPRINT)


def test_another_format_version(tmp_path: Path) -> None:
    path = tmp_path / "store.lmdb"
    _put(path, b"meta", json.dumps({"format": "segvlm-phrases", "format_version": 99}).encode())
    with pytest.raises(StoreError, match="format version 99"):
        PhraseStore(path)


def test_a_replaced_file_does_not_mix_with_the_old_one(store_path: Path) -> None:
    """A reader keeps the file that it opened; a new reader sees the new one."""
    old = PhraseStore(store_path)
    write_store(store_path.with_name("new.lmdb"), count=2).replace(store_path)
    assert old.jpeg("5") == bytes([5]) * 10
    assert len(PhraseStore(store_path)) == 2
