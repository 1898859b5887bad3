"""Reading PhraseCut: its ground truth equals the official tool's, and broken files say so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from training.data.phrasecut import (
    PhraseCutTask,
    TaskFile,
    load_tasks,
    read_phrasecut,
    refer_file,
    target_mask,
)
from training.data.phrasecut_subsets import SUBSETS, Ranks, subsets_of


@pytest.fixture(scope="module")
def miniature(shared_dir: Path) -> Path:
    return shared_dir / "data" / "phrasecut"


@pytest.fixture(scope="module")
def reference() -> str:
    """The end of the reference files' names that the installed Pillow must reproduce.

    Pillow changed the rasterisation of polygons in 11.1 and again in 11.2. Measured on the
    miniature: 9.5.0, 10.4.0 and 11.0.0 draw alike, 11.2.1, 11.3.0, 12.0.0 and 13.0.0 draw alike,
    and 11.1.0 draws like neither.
    """
    version = tuple(int(part) for part in PIL.__version__.split(".")[:2])
    if (11, 2) <= version < (14, 0):
        return ""
    if (9, 5) <= version <= (11, 0):
        return "_pillow9.5.0"
    pytest.skip(f"no official masks are known for the way Pillow {PIL.__version__} draws polygons")


@pytest.mark.parametrize("split", ["val", "test"])
def test_every_target_equals_the_official_one(miniature: Path, reference: str, split: str) -> None:
    root = miniature / "VGPhraseCut_v0"
    images = read_phrasecut(root).images
    tasks = load_tasks(root, split)
    assert len(tasks) == 60
    for task in tasks:
        image = images[task.image_id]
        mask = target_mask(task.polygons, image.height, image.width)
        with Image.open(miniature / f"gt{reference}" / f"{task.task_id}.png") as official:
            np.testing.assert_array_equal(mask, np.asarray(official.convert("1")), task.task_id)


@pytest.mark.parametrize("split", ["val", "test"])
def test_every_task_is_in_its_official_subsets(miniature: Path, reference: str, split: str) -> None:
    root = miniature / "VGPhraseCut_v0"
    images, ranks = read_phrasecut(root).images, Ranks.read(root)
    content = (miniature / f"official_per_task{reference}.json").read_text()
    official = {key: row for key, row in json.loads(content).items() if row["split"] == split}
    seen: set[str] = set()
    for task in load_tasks(root, split):
        image = images[task.image_id]
        mask = target_mask(task.polygons, image.height, image.width)
        found = subsets_of(task, image, mask, ranks)
        theirs = official.pop(task.task_id)["subsets"]
        wanted = [name for name in SUBSETS if name in theirs]
        assert ["all", *found] == wanted, task.task_id
        seen.update(wanted)
    assert not official
    assert seen == set(SUBSETS)  # the miniature has every subset in either split


def test_the_miniature_has_every_trap(miniature: Path) -> None:
    """What the equality above proves: polygons that a naive reader gets wrong are among them."""
    root = miniature / "VGPhraseCut_v0"
    images = read_phrasecut(root).images
    traps = dict.fromkeys(("a point", "a line", "several", "outside", "half pixel"), 0)
    for task in load_tasks(root, "val") + load_tasks(root, "test"):
        image = images[task.image_id]
        traps["several"] += len(task.polygons) > 1
        for polygon in task.polygons:
            traps["a point"] += len(polygon) == 1
            traps["a line"] += len(polygon) == 2
            traps["outside"] += bool(
                (polygon < 0).any() or (polygon > (image.width, image.height)).any()
            )
            traps["half pixel"] += bool((polygon % 1 > 0.5).any())
    assert all(traps.values()), traps


# -- the rasteriser, by hand -------------------------------------------------------------------


def drawn(*polygons: Any, height: int = 40, width: int = 50) -> set[tuple[int, int]]:
    """(x, y) of the target's pixels."""
    mask = target_mask(polygons, height, width)
    assert mask.shape == (height, width) and mask.dtype == bool
    return {(int(x), int(y)) for y, x in np.argwhere(mask)}


def box(left: int, top: int, right: int, bottom: int) -> set[tuple[int, int]]:
    """Pixels of a box, its last row and column included."""
    return {(x, y) for x in range(left, right + 1) for y in range(top, bottom + 1)}


def square(low: float, high: float) -> list[list[float]]:
    return [[low, low], [high, low], [high, high], [low, high]]


def test_vertices_are_truncated() -> None:
    """The example of the data set's description: 10.9 to 19.9 gives pixels 10 to 19."""
    assert drawn(square(10.9, 19.9)) == box(10, 10, 19, 19)


def test_truncation_is_toward_zero() -> None:
    """Rounding down would put -0.9 outside the image."""
    assert drawn([[-0.9, 2], [-0.9, 2]]) == {(0, 2)}
    assert drawn([[-1.1, 2], [-1.1, 2]]) == set()


def test_polygons_unite_and_cut_no_holes() -> None:
    assert drawn(square(2, 20), square(5, 10)) == box(2, 2, 20, 20)
    assert drawn(square(2, 4), square(10, 12)) == box(2, 2, 4, 4) | box(10, 10, 12, 12)


def test_fewer_than_two_points_are_skipped_two_are_a_line() -> None:
    assert drawn([], [[5, 5]], np.zeros((0, 2))) == set()
    assert drawn([[3, 7], [9, 7]]) == box(3, 7, 9, 7)


def test_a_polygon_that_crosses_itself_fills_both_wings() -> None:
    pixels = drawn([[4, 4], [24, 4], [4, 24], [24, 24]])
    assert {(14, 6), (14, 22)} <= pixels
    assert not {(5, 14), (23, 14)} & pixels


def test_what_lies_outside_is_cut() -> None:
    assert drawn([[-30, -30], [100, -30], [100, 100], [-30, 100]]) == box(0, 0, 49, 39)
    assert drawn(square(200, 300)) == set()


def test_no_polygon_is_an_empty_target() -> None:
    assert drawn() == set()


# -- the files ---------------------------------------------------------------------------------


def task_row(task_id: str = "7__1", **fields: Any) -> dict[str, Any]:
    return {
        "task_id": task_id,
        "image_id": 7,
        "ann_ids": [1],
        "instance_boxes": [[1, 2, 3, 4.5]],
        "Polygons": [[square(1, 4), square(6, 8)], [square(9, 9.5)]],
        "phrase": "red dog left of tree",
        "phrase_structure": {
            "name": "dog",
            "attributes": ["red"],
            "relation_ids": [3],
            "relation_descriptions": [["left of", "tree"]],
            "type": "relation",
        },
        **fields,
    }


def write_rows(root: Path, rows: Any, name: str = "refer_val.json") -> Path:
    path = root / name
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows), encoding="utf-8")
    return path


def test_a_task_is_read_whole(tmp_path: Path) -> None:
    write_rows(tmp_path, [task_row()])
    (task,) = load_tasks(tmp_path, "val")
    assert (task.task_id, task.image_id, task.phrase) == ("7__1", 7, "red dog left of tree")
    assert (task.name, task.attributes, task.type) == ("dog", ("red",), "relation")
    assert task.relations == (("left of", "tree"),)
    assert task.instance_boxes == ((1.0, 2.0, 3.0, 4.5),)
    assert [len(polygon) for polygon in task.polygons] == [4, 4, 4]
    np.testing.assert_array_equal(task.polygons[1], square(6, 8))


def test_splits_join_as_in_the_official_tool(tmp_path: Path) -> None:
    write_rows(tmp_path, [task_row("7__1")])
    write_rows(tmp_path, [task_row("7__2")], "refer_miniv.json")
    assert [task.task_id for task in load_tasks(tmp_path, "val_miniv")] == ["7__1", "7__2"]
    assert refer_file(tmp_path, "miniv") == tmp_path / "refer_miniv.json"
    with pytest.raises(ValueError, match="no split 'dev'; choose from train, val, test, miniv"):
        load_tasks(tmp_path, "dev")


BROKEN_ROWS = {
    "no phrase": {key: value for key, value in task_row().items() if key != "phrase"},
    "no Polygons": {key: value for key, value in task_row().items() if key != "Polygons"},
    "not a text": task_row(phrase=None),
    r"not a list of \[x, y\]": task_row(Polygons=[[[[1, 2, 3], [4, 5, 6]]]]),
    "not finite or far outside": task_row(Polygons=[[[[1, math.nan], [4, 5]]]]),
    "far outside": task_row(Polygons=[[[[1, 1e300], [4, 5]]]]),
    "could not convert": task_row(Polygons=[[[["a", "b"]]]]),
    "": task_row(Polygons=None),
}


@pytest.mark.parametrize("reason", BROKEN_ROWS)
def test_a_broken_row_is_named(tmp_path: Path, reason: str) -> None:
    write_rows(tmp_path, [task_row(), {**BROKEN_ROWS[reason], "task_id": "7__2"}])
    with pytest.raises(ValueError, match=rf"refer_val.json row 1: .*{reason}.*download it again"):
        load_tasks(tmp_path, "val")
    first, second = TaskFile.open(tmp_path / "refer_val.json").tasks(7)
    assert isinstance(first, PhraseCutTask)
    assert isinstance(second, ValueError) and "task 7__2" in str(second)


def test_rows_that_name_nothing_or_the_same_again(tmp_path: Path) -> None:
    rows = [task_row(), 3, {"task_id": "x"}, task_row(), task_row("7__3")]
    file = TaskFile.open(write_rows(tmp_path, rows))
    assert (file.n_rows, len(file.rows[7])) == (5, 2)
    assert [fault.split(":")[0] for fault in file.faults] == [
        "refer_val.json row 1 names no photo or no task",
        "refer_val.json row 2 names no photo or no task",
        "refer_val.json row 3",
    ]


WHOLE = json.dumps([task_row(), task_row("7__2")])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[",
        WHOLE[:-1],
        WHOLE[: len(WHOLE) // 3],
        WHOLE[:-5],
        WHOLE[:-1] + ",]",
        WHOLE.replace("}, {", "} {"),
    ],
)
def test_a_file_that_is_cut_off_or_no_list(tmp_path: Path, text: str) -> None:
    write_rows(tmp_path, text)
    with pytest.raises(ValueError, match=r"refer_val.json is .*download it again"):
        load_tasks(tmp_path, "val")
    with pytest.raises(ValueError, match=r"refer_val.json is .*download it again"):
        TaskFile.open(tmp_path / "refer_val.json")


def test_an_empty_list_and_loose_spacing(tmp_path: Path) -> None:
    write_rows(tmp_path, " [ \n] ")
    assert load_tasks(tmp_path, "val") == []
    write_rows(tmp_path, json.dumps([task_row(), task_row("7__2")], indent=2) + "\n")
    assert len(load_tasks(tmp_path, "val")) == 2


def test_missing_files_name_the_folder_that_is_wanted(tmp_path: Path) -> None:
    for read in (lambda: load_tasks(tmp_path, "val"), lambda: read_phrasecut(tmp_path)):
        with pytest.raises(ValueError, match="give the folder VGPhraseCut_v0"):
            read()
    (tmp_path / "refer_val.json").write_bytes(b"\xff\xfe[]")
    with pytest.raises(ValueError, match="is not JSON"):
        load_tasks(tmp_path, "val")


def test_photos(tmp_path: Path) -> None:
    row = {"image_id": 7, "coco_id": 0, "width": 50, "height": 40, "split": "val"}
    rows = [row, {**row, "image_id": 8, "coco_id": 11}, {**row, "image_id": 9, "width": 0}, None]
    write_rows(tmp_path, [*rows, {"image_id": 10}], "image_data_split.json")
    content = read_phrasecut(tmp_path)
    assert list(content.images) == [7, 8]
    assert content.images[7].coco_id is None and content.images[8].coco_id == 11
    assert (content.images[7].width, content.images[7].height) == (50, 40)
    assert content.photo(7) == tmp_path / "images" / "7.jpg"
    assert [fault.split(":")[0] for fault in content.faults] == [
        f"image_data_split.json row {number}" for number in (2, 3, 4)
    ]
