"""COCO-format files as they are published: no split, no source, COCO ids in three forms."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.__main__ import main
from training.data.coco_annotations import RowDefaults, read_annotations
from training.data.coco_ids import coco_id_of
from training.data.lmdb_store import PhraseStore

URL = "http://images.cocodataset.org/val2017/000000000139.jpg"
INFO = {"description": "COCO 2017 Dataset", "url": "http://cocodataset.org", "year": 2017}


@pytest.mark.parametrize(
    ("row", "official", "expected"),
    [
        ({"coco_url": URL, "file_name": "photo.jpg"}, False, 139),
        ({"coco_url": "http://mscoco.org/images/COCO_val2014_000000000042.jpg"}, False, 42),
        ({"file_name": "COCO_train2014_000000581857.jpg"}, False, 581857),
        ({"file_name": "images/coco_000000000446.jpg"}, False, 446),
        ({"file_name": "val2017/000000000139.jpg"}, True, 139),
        ({"file_name": "val2017/000000000139.jpg"}, False, None),
        ({"file_name": "coco_139.jpg"}, True, None),
        ({"file_name": "2007_000032.jpg"}, True, None),
        ({"file_name": "coco_000000000446.jpg", "coco_id": None}, True, None),
        ({"file_name": "coco_000000000446.jpg", "coco_id": 7}, True, 7),
        ({}, True, None),
    ],
)
def test_the_photo_s_number_in_coco(
    row: Mapping[str, Any], official: bool, expected: int | None
) -> None:
    assert coco_id_of({"id": 5, **row}, "auto", official=official) == expected
    assert coco_id_of({"id": 5, **row}, "none", official=official) is None
    assert coco_id_of({"id": 5, **row}, "image-id", official=official) == 5


def write(folder: Path, images: list[dict[str, Any]], **tables: Any) -> Path:
    """An annotation file; every image has one red dog."""
    for row in images:
        file = folder / (row.get("file_name") or "/".join(row["coco_url"].split("/")[-2:]))
        file.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((64, 96, 3), 120, dtype=np.uint8)
        pixels[20:50, 30:70] = (200, 20, 30)
        Image.fromarray(pixels).save(file, quality=95)
    polygon = [[30, 20, 70, 20, 70, 50, 30, 50]]
    annotations = [
        {"id": i, "image_id": row["id"], "category_id": 18, "segmentation": polygon}
        for i, row in enumerate(images)
    ]
    path = folder / "instances_val2017.json"
    content = {
        "info": INFO,
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 18, "name": "dog"}],
    }
    path.write_text(json.dumps(content | tables))
    return path


def coco_row(number: int, **fields: Any) -> dict[str, Any]:
    name = f"{number:012d}.jpg"
    return {"id": number, "file_name": name, "height": 64, "width": 96, **fields}


def prepare(annotations: Path, out: Path, *options: str) -> PhraseStore:
    command = ["prepare", "instances", "--annotations", str(annotations), "--out", str(out)]
    assert main([*command, *options]) == 0
    return PhraseStore(out)


def test_coco_as_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tmp_path / "val2017"
    annotations = write(photos, [coco_row(139), coco_row(285, coco_url=URL)])
    moved = annotations.rename(tmp_path / annotations.name)
    store = prepare(
        moved, tmp_path / "s.lmdb", "--images", str(photos), "--split", "val", "--source", "coco"
    )
    assert store.splits == ["val"] and store.image_ids("val", {"coco"}) == ["139", "285"]
    assert [store.coco_id("139"), store.coco_id("285")] == [139, 139]  # the address goes first
    assert store.image("139").coco_id == 139
    assert "photos known to be COCO's: 2 of 2" in capsys.readouterr().out


def test_rows_own_words_go_first(tmp_path: Path) -> None:
    rows = [coco_row(1, split="train", source="mine"), coco_row(2)]
    defaults = RowDefaults(split="test", source="coco", coco_ids="none")
    first, second = read_annotations(write(tmp_path, rows), defaults).images
    assert (first.split, first.source, first.coco_id) == ("train", "mine", None)
    assert (second.split, second.source, second.coco_id) == ("test", "coco", None)


def test_a_set_that_only_looks_like_coco(tmp_path: Path) -> None:
    info = {"description": "Our own photos in COCO format", "url": "http://example.org"}
    annotations = write(tmp_path, [coco_row(1), coco_row(2)], info=info)
    assert [row.coco_id for row in read_annotations(annotations).images] == [None, None]
    by_id = RowDefaults(coco_ids="image-id")
    assert [row.coco_id for row in read_annotations(annotations, by_id).images] == [1, 2]


def test_file_names_of_lvis(tmp_path: Path) -> None:
    row = {"id": 139, "coco_url": URL, "height": 64, "width": 96}
    store = prepare(write(tmp_path, [row]), tmp_path / "s.lmdb")
    assert store.coco_id("139") == 139 and store.phrase_count("139")


def test_faulty_image_rows_are_listed(tmp_path: Path) -> None:
    rows = [coco_row(number) for number in range(1, 7)]
    annotations = write(tmp_path, rows)
    del rows[0]["height"], rows[1]["file_name"]
    rows[2]["split"], rows[3]["coco_id"], rows[4]["width"] = "minival", "nine", None
    content = json.loads(annotations.read_text())
    annotations.write_text(json.dumps(content | {"images": rows}))
    read = read_annotations(annotations)
    assert [row.image_id for row in read.images] == ["6"]
    assert [re.sub(r", expected.*", "", fault) for fault in read.faults] == [
        "image 1: no height",
        "image 2: no file_name",
        "image 3: unknown split 'minival'",
        "image 4: 'nine' is no COCO id, which is a whole number",
        "image 5: no width",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--split", "minival"], "unknown split 'minival'; use one of train, val, test"),
        (["--split", "val"], "was made from other annotations"),
        (["--coco-ids", "none"], "was made from other annotations"),
    ],
)
def test_other_defaults_are_another_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], words: str
) -> None:
    annotations = write(tmp_path, [coco_row(1)])
    prepare(annotations, tmp_path / "s.lmdb")
    capsys.readouterr()
    command = ["prepare", "instances", "--annotations", str(annotations)]
    assert main([*command, "--out", str(tmp_path / "s.lmdb"), *options]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_categories_must_be_named(tmp_path: Path) -> None:
    annotations = write(tmp_path, [coco_row(1)], categories=[{"id": 18}])
    with pytest.raises(ValueError, match="every category needs a whole id and a name"):
        read_annotations(annotations)


def test_the_photo_pack_says_which_photos_are_coco_s(shared_dir: Path) -> None:
    rows = read_annotations(shared_dir / "data" / "photos" / "annotations.json").images
    ours = [row for row in rows if row.source in ("coco", "coco-partial")]
    assert all(row.file_name == f"images/coco_{row.coco_id:012d}.jpg" for row in ours)
    assert len(ours) == 1077 == sum(row.coco_id is not None for row in rows)
    splits: dict[int | None, set[str]] = {}
    for row in ours:
        splits.setdefault(row.coco_id, set()).add(row.split)
    assert all(len(each) == 1 for each in splits.values())  # its own split leaks nothing
