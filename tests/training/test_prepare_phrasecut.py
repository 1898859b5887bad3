"""From VGPhraseCut_v0 to a store: what it holds, what is left out, and that it is all counted."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from PIL import Image

from training.__main__ import main
from training.data import phrasecut_counts
from training.data.lmdb_store import PhraseStore, PhraseStoreWriter, StoreError, decode_rle
from training.data.phrasecut import load_tasks, read_phrasecut, target_mask
from training.data.phrasecut_subsets import Ranks, subsets_of
from training.data.preview import render_preview
from training.data.store_building import PrepareReport
from training.prepare_phrasecut import prepare_phrasecut

HEIGHT, WIDTH = 40, 60
SPLITS = ("train", "val", "test", "miniv")


class PhraseCutFolder:
    """A small VGPhraseCut_v0, drawn here and written by `save`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.images: list[dict[str, Any]] = []
        self.rows: dict[str, list[Any]] = {split: [] for split in SPLITS}
        (root / "images").mkdir(parents=True)

    def photo(self, image_id: int, split: str, size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
        """A described photo; `size` (width, height) is the file's, not the annotated one."""
        pixels = np.random.default_rng(image_id).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(self.path(image_id), quality=90)
        row = {"image_id": image_id, "coco_id": None, "width": WIDTH, "height": HEIGHT}
        self.images.append({**row, "split": split})

    def path(self, image_id: int) -> Path:
        return self.root / "images" / f"{image_id}.jpg"

    def task(self, split: str, image_id: int, number: int, **fields: Any) -> None:
        name = fields.pop("name", "dog")
        low = 2 + 5 * number
        corners = [[low, 3.7], [low + 4, 3.7], [low + 4, 9.2], [low, 9.2]]
        self.rows[split].append(
            {
                "task_id": f"{image_id}__{number}",
                "image_id": image_id,
                "instance_boxes": [[low, 3, 4, 6]],
                "Polygons": [[corners]],
                "phrase": f"{name} {number}",
                "phrase_structure": {
                    "name": name,
                    "attributes": [],
                    "relation_descriptions": [],
                    "type": "name",
                },
                **fields,
            }
        )

    def save(self) -> Path:
        (self.root / "image_data_split.json").write_text(json.dumps(self.images))
        (self.root / "name_att_rel_count.json").write_text(
            json.dumps({"cat": [["dog", 5]], "att": [["red", 5]], "rel": []})
        )
        for split, rows in self.rows.items():
            (self.root / f"refer_{split}.json").write_text(json.dumps(rows))
        return self.root

    def prepare(self, out: Path, splits: tuple[str, ...] = SPLITS) -> tuple[PrepareReport, Any]:
        report = prepare_phrasecut(self.save(), out, splits, show_progress=False)
        return report, PhraseStore(out)


@pytest.fixture
def folder(tmp_path: Path) -> PhraseCutFolder:
    """Two photos to train on and one in each other split, two phrases each."""
    made = PhraseCutFolder(tmp_path / "VGPhraseCut_v0")
    for image_id, split in ((1, "train"), (2, "train"), (3, "val"), (4, "test"), (5, "miniv")):
        made.photo(image_id, split)
        for number in (1, 2):
            made.task(split, image_id, number)
    return made


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "store.lmdb"


def note(report: PrepareReport, begin: str) -> str:
    """The one note that begins so."""
    (found,) = (line for line in report.notes if line.startswith(begin))
    return found


def contents(path: Path) -> dict[bytes, bytes]:
    with (
        lmdb.open(str(path), subdir=False, readonly=True, lock=False) as environment,
        environment.begin() as transaction,
    ):
        return {bytes(key): bytes(value) for key, value in transaction.cursor()}


# -- the miniature with the official masks -----------------------------------------------------


def test_the_miniature(shared_dir: Path, out: Path) -> None:
    """Every phrase of every split, its ground truth and subsets as scored from the files."""
    root = shared_dir / "data" / "phrasecut" / "VGPhraseCut_v0"
    assert main(["prepare", "phrasecut", "--root", str(root), "--out", str(out)]) == 0
    store, content, ranks = PhraseStore(out), read_phrasecut(root), Ranks.read(root)
    assert store.splits == ["miniv", "test", "train", "val", "val_miniv"] and len(store) == 24
    for split, wanted in {**dict.fromkeys(("val", "test"), 60), "train": 80, "miniv": 20}.items():
        records = {
            record.task_id: (image_id, record)
            for image_id in store.image_ids(split)
            for record in store.phrases(image_id)
        }
        tasks = load_tasks(root, split)
        assert len(tasks) == len(records) == wanted
        for task in tasks:
            image_id, record = records[task.task_id]
            image = content.images[task.image_id]
            mask = target_mask(task.polygons, image.height, image.width)
            np.testing.assert_array_equal(decode_rle(record.rle), mask, task.task_id)
            assert image_id == str(task.image_id)
            assert record.subsets == subsets_of(task, image, mask, ranks)
            assert (record.phrase, record.kind) == (task.phrase, task.type)
            assert record.class_name == task.name and not record.discriminative
    for image_id in store.image_ids("val_miniv") + store.image_ids("train"):
        row, record = content.images[int(image_id)], store.image(image_id)
        assert (record.coco_id, record.width, record.height) == (row.coco_id, row.width, row.height)
        assert store.photo(image_id).shape == (row.height, row.width, 3)
        assert store.jpeg(image_id) == content.photo(row.image_id).read_bytes()
    assert render_preview(store, out.with_suffix(".png"), "val_miniv", 5) == 5
    report = PrepareReport(**store.metadata()["progress"]["report"])
    assert report.tallies == {"greyscale photos": 2} and not report.faults


# -- what a record holds -----------------------------------------------------------------------


def test_groups_and_swapped_words(folder: PhraseCutFolder, out: Path) -> None:
    folder.task("train", 1, 3, name="cat", phrase="cat left of the right dog")
    report, store = folder.prepare(out)
    first, second, third = store.phrases("1")
    assert (first.group, second.group, third.group) == (0, 0, 1)
    assert first.swapped is None
    assert (third.swapped, third.swapped_rle) == ("cat right of the left dog", None)
    assert report.total("train") == 5 and report.images["val/phrasecut"] == 1


def test_the_splits_that_are_asked_for(folder: PhraseCutFolder, out: Path, tmp_path: Path) -> None:
    for split in ("train", "miniv"):
        (folder.save() / f"refer_{split}.json").unlink()
        del folder.rows[split]
    report, store = folder.prepare(out, ("test", "val"))
    assert store.splits == ["test", "val"]
    assert len([line for line in report.notes if "published" in line]) == 2
    with pytest.raises(ValueError, match=r"refer_train.json cannot be read .*give the folder"):
        prepare_phrasecut(folder.root, tmp_path / "all.lmdb", show_progress=False)
    with pytest.raises(ValueError, match="no split dev; choose from train, val, test, miniv"):
        prepare_phrasecut(folder.root, tmp_path / "dev.lmdb", ("val", "dev"), show_progress=False)
    with pytest.raises(ValueError, match="no split given"):
        prepare_phrasecut(folder.root, tmp_path / "none.lmdb", (), show_progress=False)


# -- counts ------------------------------------------------------------------------------------


def test_counts_beside_the_published_ones(
    folder: PhraseCutFolder, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = {"train": (2, 4), "val": (2, 4), "test": (1, 2), "miniv": (1, 3)}
    monkeypatch.setattr(phrasecut_counts, "PUBLISHED", counts)
    monkeypatch.setattr(phrasecut_counts, "_VAL_WITHOUT_MINIV", (1, 2))
    report, _ = folder.prepare(out)
    assert "published 4 of 2 (as published); stored 4 of 2" in note(report, "train: ")
    # As the authors describe their files: val and miniv are apart, published together.
    assert "published 4 of 2 with miniv, 2 of 1 without (as published)" in note(report, "val: ")
    assert "published as validation 4 of 2 (as published)" in note(report, "val_miniv: ")
    assert "holds 2 phrases of 1 photos, published 3 of 1 (differs)" in note(report, "miniv: ")
    assert note(report, "val and miniv share no photo")
    assert note(report, "photos resized to their annotated size: 0")


def test_a_photo_of_both_val_and_miniv_is_stored_once(folder: PhraseCutFolder, out: Path) -> None:
    folder.rows["miniv"] += folder.rows["val"]
    folder.task("miniv", 3, 3)
    report, store = folder.prepare(out)
    assert store.image_ids("val") == ["3"]
    assert store.image_ids("miniv") == ["3", "5"] == store.image_ids("val_miniv")
    assert [phrase.task_id for phrase in store.phrases("3")] == ["3__1", "3__2", "3__3"]
    assert len(store) == 5
    assert "stored once, counted under val" in note(report, "val and miniv share 1 photos")
    assert "both splits get all of them" in note(report, "1 of them have more phrases")
    assert "hold 5 phrases of 2 photos" in note(report, "val_miniv")


def test_a_photo_of_an_evaluation_split_does_not_train(folder: PhraseCutFolder, out: Path) -> None:
    folder.task("train", 4, 9)
    report, store = folder.prepare(out)
    assert store.image_ids("train") == ["1", "2"]
    assert store.image_ids("test") == ["4"]
    assert [phrase.task_id for phrase in store.phrases("4")] == ["4__1", "4__2"]
    assert "image 4 is in refer_train.json and in test" in report.faults
    assert "left out: 1 (photo of an evaluation split)" in note(report, "train: ")


def test_skipped_phrases_are_not_used(folder: PhraseCutFolder, out: Path) -> None:
    """skip.json: phrases that annotators gave up on, with a reason and without polygons."""
    rows = [{"task_id": "1__1", "reason": "Other"}, {"task_id": "1__77", "reason": "Not in Image"}]
    skipped = folder.root / "skip.json"
    skipped.write_text(json.dumps(rows))
    report, store = folder.prepare(out)
    assert store.phrase_count("1") == 2
    assert "2 phrases that the annotators skipped" in note(report, "skip.json")
    assert "1 of them have masks in a refer file" in note(report, "skip.json")
    skipped.write_text("[{")
    del store  # a store is not opened for writing while it is read
    report = prepare_phrasecut(folder.root, out, show_progress=False)
    assert "cannot be read" in note(report, "skip.json")


# -- faults ------------------------------------------------------------------------------------


def test_photos_of_another_size(folder: PhraseCutFolder, out: Path) -> None:
    """One of the annotated shape is resized, so that masks fit; one of another shape left out."""
    folder.photo(6, "train", (2 * WIDTH, 2 * HEIGHT))
    folder.photo(7, "train", (WIDTH, HEIGHT + 2))  # 5 % off
    folder.photo(8, "test", (HEIGHT, WIDTH))
    for image_id, split in ((6, "train"), (7, "train"), (7, "train"), (8, "test")):
        folder.task(split, image_id, len(folder.rows[split]))
    report, store = folder.prepare(out)
    assert store.image_ids("train") == ["1", "2", "6"]
    assert store.photo("6").shape == (HEIGHT, WIDTH, 3)
    original = Image.open(folder.path(6)).resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    assert np.abs(store.photo("6") - np.asarray(original, dtype=float)).mean() < 6
    assert "image 6: 120 x 80 resized to the annotated 60 x 40" in report.faults
    assert "image 7: 7.jpg is 60 x 42, annotated 60 x 40" in report.faults
    assert "left out: 2 (photo missing or unusable)" in note(report, "train: ")
    assert "left out: 1 (photo missing or unusable)" in note(report, "test: ")
    assert note(report, "photos resized").endswith(": 1")


def test_missing_damaged_and_undescribed_photos(folder: PhraseCutFolder, out: Path) -> None:
    folder.path(1).unlink()
    folder.path(3).write_bytes(folder.path(3).read_bytes()[:400])
    folder.task("test", 99, 1)
    folder.photo(6, "test")  # described, but no phrase
    report, store = folder.prepare(out)
    assert [store.image_ids(split) for split in SPLITS] == [["2"], [], ["4"], ["5"]]
    listed = "\n".join(report.faults)
    for words in ("image 1: no file 1.jpg", "image 3: 3.jpg cannot be", "image 99 is not in image"):
        assert words in listed
    assert "left out: 2 (photo missing or unusable)" in note(report, "train: ")
    assert "left out: 1 (photo not described)" in note(report, "test: ")
    assert note(report, "photos described without any phrase").endswith(": 1")
    assert store.image_ids("val_miniv") == ["5"]


def test_greyscale_photos_stay_as_they_are(folder: PhraseCutFolder, out: Path) -> None:
    Image.open(folder.path(2)).convert("L").save(folder.path(2))
    report, store = folder.prepare(out)
    assert store.jpeg("2") == folder.path(2).read_bytes()
    pixels = store.photo("2")
    assert pixels.shape == (HEIGHT, WIDTH, 3) and (pixels[..., 0] == pixels[..., 2]).all()
    assert note(report, "greyscale photos, stored as they are and read as RGB").endswith(": 1")
    assert not report.faults


def test_an_empty_target_is_scored_but_not_trained(folder: PhraseCutFolder, out: Path) -> None:
    outside = [[[[-9, -9], [-5, -9], [-5, -5]]]]
    for split, image_id in (("train", 1), ("val", 3)):
        folder.task(split, image_id, 3, Polygons=outside)
        folder.task(split, image_id, 4, Polygons=[[[[5, 5]]]])
    report, store = folder.prepare(out)
    assert [phrase.task_id for phrase in store.phrases("1")] == ["1__1", "1__2"]
    ids = [phrase.task_id for phrase in store.phrases("3")]
    assert ids == ["3__1", "3__2", "3__3", "3__4"]
    assert not decode_rle(store.phrases("3")[2].rle).any()
    assert "task 1__3: no target (left out)" in report.faults
    assert "task 3__4: no target (kept, every prediction scores 0)" in report.faults
    assert "left out: 2 (no target)" in note(report, "train: ")
    assert note(report, "val: 2 phrases without a target are kept")


def test_broken_rows_are_left_out_and_listed(folder: PhraseCutFolder, out: Path) -> None:
    folder.task("train", 1, 3, phrase=None)
    folder.task("train", 1, 4, Polygons=[[[[1, 2, 3]]]])
    folder.task("train", 1, 2)  # there already
    folder.rows["train"] += [7]
    folder.images += [{"image_id": 88}]
    report, store = folder.prepare(out)
    assert store.phrase_count("1") == 2
    files = Counter(re.split(r"[ :]", fault)[0] for fault in report.faults)
    assert files == {"image_data_split.json": 1, "refer_train.json": 4}
    held = note(report, "train: ")
    assert "holds 8 phrases of 2 photos" in held and "stored 4 of 2" in held
    assert "2 (broken row), 2 (row named no photo or task, or a task again)" in held


def test_many_faults_are_counted_not_listed(folder: PhraseCutFolder, out: Path) -> None:
    """The report is committed with every batch, so 70,000 missing photos must not fill it."""
    for image_id in range(100, 260):
        folder.task("train", image_id, 1)
    report, _ = folder.prepare(out)
    assert len(report.faults) == 100 and report.unlisted == {"photos not described": 60}
    assert "faults: 160" in report.text() and "and 60 more: photos not described" in report.text()
    assert "left out: 160 (photo not described)" in note(report, "train: ")


# -- going on ----------------------------------------------------------------------------------


def test_an_interrupted_run_continues_to_the_same_store(
    folder: PhraseCutFolder, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed processes: see test_prepare.py, the loop is the same."""
    folder.path(1).unlink()
    monkeypatch.setattr("training.data.store_building._BATCH_IMAGES", 2)
    add = PhraseStoreWriter.add
    with monkeypatch.context() as patch:

        def add_once(self: PhraseStoreWriter, batch: Any, *more: Any) -> None:
            if self.progress:
                raise KeyboardInterrupt
            add(self, batch, *more)

        patch.setattr(PhraseStoreWriter, "add", add_once)
        with pytest.raises(KeyboardInterrupt):
            folder.prepare(out)
    with pytest.raises(StoreError, match="not finished; run the same"):
        PhraseStore(out)
    resumed = prepare_phrasecut(folder.root, out, show_progress=False)
    straight = prepare_phrasecut(folder.root, tmp_path / "straight.lmdb", show_progress=False)
    assert contents(out) == contents(tmp_path / "straight.lmdb")
    assert resumed == straight and len(resumed.faults) == 1
    assert prepare_phrasecut(folder.root, out, show_progress=False) == straight  # finished: read


def test_other_files_or_another_pillow_do_not_continue_a_store(
    folder: PhraseCutFolder, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.prepare(out)
    with monkeypatch.context() as patch:
        patch.setattr("PIL.__version__", "6.1.0")
        with pytest.raises(StoreError, match="choose another output path"):
            folder.prepare(out)
    folder.task("test", 4, 3)
    with pytest.raises(StoreError, match="choose another output path"):
        folder.prepare(out)


# -- the command -------------------------------------------------------------------------------


def test_the_command(
    folder: PhraseCutFolder, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--root", str(folder.save()), "--out", str(out)]
    assert main(["prepare", "phrasecut", *where, "--splits", "val, test"]) == 0
    printed = capsys.readouterr().out
    assert "val: 1 images, 2 phrases" in printed and "targets drawn by Pillow" in printed
    assert PhraseStore(out).splits == ["test", "val"]
    assert main(["prepare", "phrasecut", "--root", str(out.parent), "--out", str(out)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ") and "give the folder VGPhraseCut_v0" in line
