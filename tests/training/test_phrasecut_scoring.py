"""Scores from files: the official ones, and those of the model that wrote the files."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from training.__main__ import main
from training.data.lmdb_store import PhraseStore
from training.data.phrasecut_subsets import SUBSETS
from training.outcomes import report_of
from training.phrasecut_scoring import PredictionWriter, score_files

WIDTH, HEIGHT = 30, 20


@pytest.fixture(scope="module")
def miniature(shared_dir: Path) -> Path:
    return shared_dir / "data" / "phrasecut"


@pytest.fixture(scope="module")
def reference() -> str:
    """The end of the official files' names for the way the installed Pillow draws polygons."""
    version = tuple(int(part) for part in PIL.__version__.split(".")[:2])
    if (11, 2) <= version < (14, 0):
        return ""
    if (9, 5) <= version <= (11, 0):
        return "_pillow9.5.0"
    pytest.skip(f"no official scores are known for Pillow {PIL.__version__}")


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_command_equals_the_official_evaluator(
    miniature: Path,
    reference: str,
    split: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    root, predictions = miniature / "VGPhraseCut_v0", miniature / "predictions" / split
    report, rows, page = (tmp_path / name for name in ("scores.json", "rows.csv", "page.md"))
    command = ["evaluate", "--phrasecut", str(root), "--split", split]
    command += ["--predictions", str(predictions), "--markdown", str(page)]
    assert main([*command, "--json", str(report), "--csv", str(rows)]) == 0

    scores = json.loads(report.read_text("utf-8"))
    official = json.loads((miniature / f"official_scores{reference}.json").read_text())[split]
    assert tuple(scores["subsets"]) == SUBSETS
    assert len(SUBSETS) == 31
    for name, row in scores["subsets"].items():
        assert set(row) == {"num", "mean_iou", "cum_iou", "precision"}
        assert row["num"] == official[name]["num"]
        for score in ("mean_iou", "cum_iou"):
            assert row[score] == pytest.approx(official[name][score], abs=1e-12)
        assert row["precision"] == pytest.approx(official[name]["precision"], abs=1e-12)
    assert scores["all"] == scores["subsets"]["all"]
    assert scores["files"]["missing"] == scores["files"]["extra_files"] == []

    tasks = json.loads((miniature / f"official_per_task{reference}.json").read_text())
    with rows.open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert len(table) == official["all"]["num"]
    for line in table:
        task = tasks[line["task_id"]]
        assert float(line["iou"]) == pytest.approx(task["iou"], abs=1e-12)
        assert (int(line["intersection"]), int(line["union"])) == (task["i"], task["u"])

    told = capsys.readouterr().out
    assert told == page.read_text("utf-8")
    for name in SUBSETS:
        assert f"| {name} | {official[name]['num']} | " in told


def test_files_of_a_model_score_what_the_model_scored(
    miniature: Path, random_checkpoint: Path, tmp_path: Path
) -> None:
    root, store = miniature / "VGPhraseCut_v0", tmp_path / "phrasecut.lmdb"
    prepare = ["prepare", "phrasecut", "--root", str(root), "--out", str(store)]
    assert main(prepare) == 0
    pictures, of_model, of_files = (tmp_path / name for name in ("masks", "a.json", "b.json"))
    command = ["evaluate", "--checkpoint", str(random_checkpoint), "--data", str(store)]
    command += [
        "--split",
        "test",
        "--no-probes",
        "--threshold",
        "0.5",
        "--write-predictions",
        str(pictures),
    ]
    assert main([*command, "--json", str(of_model)]) == 0
    with Image.open(next(pictures.iterdir())) as picture:
        assert picture.mode == "1"

    command = ["evaluate", "--phrasecut", str(root), "--split", "test"]
    assert main([*command, "--predictions", str(pictures), "--json", str(of_files)]) == 0
    ours, theirs = (json.loads(path.read_text("utf-8")) for path in (of_model, of_files))
    assert ours["num_phrases"] == theirs["num_phrases"] == 60
    assert 0 < ours["all"]["mean_iou"] < 1
    assert ours["empty_share"] < 0.5
    same = ("num_images", "all", "kinds", "sizes", "subsets", "empty_share", "no_target")
    assert {name: ours[name] for name in same} == {name: theirs[name] for name in same}
    assert tuple(ours["subsets"]) == SUBSETS


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A VGPhraseCut_v0 with three phrases on two images, drawn as rectangles."""
    root = tmp_path / "VGPhraseCut_v0"
    root.mkdir()
    sides = {"width": WIDTH, "height": HEIGHT, "split": "val", "coco_id": None}
    write(root / "image_data_split.json", [{"image_id": each, **sides} for each in (1, 2)])
    ranks: dict[str, list[Any]] = {"cat": [["dog", 5]], "att": [], "rel": []}
    write(root / "name_att_rel_count.json", ranks)
    tasks = [(1, "1__0", 2), (1, "1__1", 12), (2, "2__0", 5)]
    write(root / "refer_val.json", [task(*each) for each in tasks])
    return root


def write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def task(image_id: int, task_id: str, left: int) -> dict[str, Any]:
    """A phrase that means a square of 10 x 10 pixels."""
    corners = [[left, 5], [left + 9, 5], [left + 9, 14], [left, 14]]
    structure = {"name": "dog", "attributes": [], "relation_descriptions": [], "type": "name"}
    return {
        "task_id": task_id,
        "image_id": image_id,
        "instance_boxes": [[left, 5, 10, 10]],
        "Polygons": [[corners]],
        "phrase": f"dog {task_id}",
        "phrase_structure": structure,
    }


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    """Right, half right and wrong answers to `small`."""
    folder = tmp_path / "masks"
    folder.mkdir()
    for task_id, columns in {"1__0": (2, 12), "1__1": (12, 17), "2__0": (20, 25)}.items():
        mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
        mask[5:15, slice(*columns)] = True
        Image.fromarray(mask).save(folder / f"{task_id}.png")
    return folder


def test_one_bit_eight_bit_and_palette_score_alike(small: Path, masks: Path) -> None:
    expected = score_files(small, "val", masks, progress=False)
    assert [each.overlap.iou for each in expected.outcomes] == [1.0, 0.5, 0.0]
    assert [(each.image_id, each.index) for each in expected.outcomes] == [
        ("1", 0),
        ("1", 1),
        ("2", 0),
    ]
    assert expected.notes() == []
    for value, mode in ((255, "L"), (1, "L"), (3, "P")):
        for path in masks.iterdir():
            with Image.open(path) as picture:
                pixels = np.where(np.asarray(picture) > 0, value, 0).astype(np.uint8)
            image = Image.fromarray(pixels)
            if mode == "P":
                image.putpalette(bytes(range(256)) * 3)
                assert image.mode == "P"
            image.save(path)
        again = score_files(small, "val", masks, progress=False)
        assert again == expected


def test_grey_counts_as_foreground_and_is_told(small: Path, masks: Path) -> None:
    pixels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    pixels[5:15, 2:12] = 255
    pixels[5:15, 12:22] = 1  # nearly black
    Image.fromarray(pixels).save(masks / "1__0.png")
    scores = score_files(small, "val", masks, progress=False)
    assert scores.outcomes[0].overlap.iou == 0.5
    assert scores.grey == ["1__0"]
    assert any("grey levels" in note for note in scores.notes())


def test_missing_predictions_are_refused_or_counted_as_zero(
    small: Path, masks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (masks / "1__0.png").unlink()
    command = ["evaluate", "--phrasecut", str(small), "--predictions", str(masks)]
    assert main(command) == 2
    told = capsys.readouterr().err
    assert "lacks 1 of 3 predictions" in told
    assert "1__0.png" in told
    assert "--missing zero" in told

    report = tmp_path / "scores.json"
    assert main([*command, "--missing", "zero", "--json", str(report)]) == 0
    assert "Without a prediction, counted as 0: 1 (1__0)." in capsys.readouterr().out
    scores = json.loads(report.read_text("utf-8"))
    assert scores["files"]["missing"] == ["1__0"]
    assert scores["all"]["num"] == 3
    assert scores["all"]["mean_iou"] == pytest.approx(0.5 / 3)
    # The missing mask's target is in the union: 50 of 100 + 100 + 150 pixels.
    assert scores["all"]["cum_iou"] == pytest.approx(50 / 350)


def test_files_of_no_phrase_are_told(small: Path, masks: Path) -> None:
    shutil.copy(masks / "1__0.png", masks / "7__0.png")
    (masks / "readme.txt").write_text("masks")
    scores = score_files(small, "val", masks, progress=False)
    assert scores.extra == ["7__0.png", "readme.txt"]
    assert "2 (7__0.png, readme.txt)" in scores.notes()[0]
    assert report_of(scores.outcomes, "val", None).mean_iou == 0.5


@pytest.mark.parametrize(
    ("picture", "told"),
    [
        (Image.new("1", (HEIGHT, WIDTH)), r"1__1\.png is 20 x 30 pixels but its image 30 x 20"),
        (Image.new("RGB", (WIDTH, HEIGHT)), r"1__1\.png is a picture of mode RGB"),
        (None, r"1__1\.png cannot be read"),
    ],
)
def test_what_is_no_mask_of_the_image_is_refused_by_name(
    small: Path, masks: Path, picture: Image.Image | None, told: str
) -> None:
    if picture is None:
        (masks / "1__1.png").write_bytes(b"no picture")
    else:
        picture.save(masks / "1__1.png")
    with pytest.raises(ValueError, match=told):
        score_files(small, "val", masks, progress=False)


def test_broken_annotations_are_refused(small: Path, masks: Path) -> None:
    write(small / "refer_val.json", [task(1, "1__0", 2), task(1, "1__0", 2)])
    with pytest.raises(ValueError, match="1__0 2 times"):
        score_files(small, "val", masks, progress=False)
    write(small / "refer_val.json", [task(9, "9__0", 2)])
    with pytest.raises(ValueError, match="image 9"):
        score_files(small, "val", masks, progress=False)
    write(small / "refer_val.json", [])
    with pytest.raises(ValueError, match="holds no phrase"):
        score_files(small, "val", masks, progress=False)
    with pytest.raises(ValueError, match="no split 'dev'"):
        score_files(small, "dev", masks, progress=False)
    write(small / "refer_val.json", [task(1, "1__0", 2)])
    with pytest.raises(ValueError, match="give the folder of the PNGs"):
        score_files(small, "val", masks / "nowhere", progress=False)


def test_predictions_need_task_ids(tiny_store: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="prepare phrasecut"):
        PredictionWriter(tmp_path / "masks", PhraseStore(tiny_store), "val")
    assert not (tmp_path / "masks").exists()


def test_a_place_that_cannot_be_written_is_told_before_the_work(
    tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("no folder")
    command = ["evaluate", "--checkpoint", "nowhere", "--data", str(tiny_store)]
    assert main([*command, "--json", str(tmp_path / "file" / "scores.json")]) == 2
    assert "file cannot be made" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--phrasecut", "X"], "--phrasecut needs --predictions"),
        (["--phrasecut", "X", "--predictions", "Y", "--fps"], "--fps is an option for scoring a"),
        (["--phrasecut", "X", "--predictions", "Y", "--threshold", "0"], "--threshold is an"),
        (["--checkpoint", "X"], "--data is missing"),
        (["--checkpoint", "X", "--fps", "--csv", "Z"], "--fps without --data does not go with"),
        (["--checkpoint", "X", "--data", "Y", "--missing", "zero"], "--missing is an option for"),
        (["--bundle", "X", "--data", "Y", "--sweep", "--threshold", "0"], "go with --threshold"),
    ],
)
def test_options_that_would_be_ignored_are_refused(
    options: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", *options]) == 2
    assert told in capsys.readouterr().err
