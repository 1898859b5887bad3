"""From COCO-format files to a store: rules of partial annotations, faults, resuming, preview."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_api

from training.data.coco_annotations import POLICIES, AnnotationPolicy, read_annotations
from training.data.lmdb_store import PhraseStore, decode_rle
from training.data.phrase_templates import clean_category_name
from training.data.preview import render_preview
from training.data.store_building import PrepareReport
from training.prepare import prepare_instances

HEIGHT, WIDTH = 96, 128
CATEGORIES = ["dog", "kite", "cloud", "bag", "purse"]
COLOURS = [(200, 20, 30), (30, 60, 190), (30, 150, 40)]


class CocoFile:
    """A small COCO-format set of drawn photos, written to disk by `save`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []

    def image(self, boxes: list[tuple[str, tuple[int, int, int, int]]], **fields: Any) -> int:
        key = len(self.images) + 1
        pixels = np.full((HEIGHT, WIDTH, 3), 120 + key % 50, dtype=np.uint8)
        for index, (_, (x0, y0, x1, y1)) in enumerate(boxes):
            pixels[y0:y1, x0:x1] = COLOURS[index % len(COLOURS)]
        name = fields.pop("file_name", f"{key:03d}.jpg")
        Image.fromarray(pixels).save(self.folder / name, quality=95)
        row = {"id": key, "file_name": name, "height": HEIGHT, "width": WIDTH}
        self.images.append({**row, **fields})
        for category, (x0, y0, x1, y1) in boxes:
            self.annotate(key, category, [[x0, y0, x1, y0, x1, y1, x0, y1]])
        return key

    def annotate(self, image: int, category: str, segmentation: Any, **fields: Any) -> None:
        self.annotations.append(
            {
                "id": len(self.annotations) + 1,
                "image_id": image,
                "category_id": CATEGORIES.index(category) + 1,
                "segmentation": segmentation,
                **fields,
            }
        )

    def save(self) -> Path:
        path = self.folder / "annotations.json"
        categories = [{"id": i + 1, "name": name} for i, name in enumerate(CATEGORIES)]
        content = {
            "images": self.images,
            "annotations": self.annotations,
            "categories": categories,
        }
        path.write_text(json.dumps(content))
        return path


LEFT, RIGHT, HIGH = (5, 40, 25, 70), (95, 40, 120, 70), (50, 5, 90, 25)


@pytest.fixture
def coco(tmp_path: Path) -> CocoFile:
    folder = tmp_path / "photos"
    folder.mkdir()
    return CocoFile(folder)


def prepare(coco: CocoFile, out: Path, **options: Any) -> tuple[PrepareReport, PhraseStore]:
    report = prepare_instances(coco.save(), coco.folder, out, show_progress=False, **options)
    return report, PhraseStore(out)


def contents(path: Path) -> dict[bytes, bytes]:
    """All keys and values, read from a copy because a store may be open here."""
    copy = shutil.copy(path, path.with_suffix(".copy"))
    with (
        lmdb.open(str(copy), subdir=False, readonly=True, lock=False) as environment,
        environment.begin() as transaction,
    ):
        return {bytes(key): bytes(value) for key, value in transaction.cursor()}


def many_images(coco: CocoFile, count: int) -> None:
    for index in range(count):
        shift = index % 10
        left = (LEFT[0] + shift, LEFT[1], LEFT[2] + shift, LEFT[3])
        split = "val" if index % 4 == 0 else "train"
        coco.image([("dog", left), ("dog", RIGHT), ("kite", HIGH)], split=split)


def test_the_store_holds_photos_as_they_are_and_the_report_counts_it(
    coco: CocoFile, tmp_path: Path
) -> None:
    many_images(coco, 8)
    report, store = prepare(coco, tmp_path / "s.lmdb")
    assert report.images == {"train/": 6, "val/": 2} and not report.faults
    assert store.jpeg("3") == (coco.folder / "003.jpg").read_bytes()
    counted: Counter[str] = Counter()
    for split in ("train", "val"):
        for image_id in store.image_ids(split):
            for phrase in store.phrases(image_id):
                counted[f"{split}/{phrase.kind}/"] += 1
    assert counted == report.phrases
    assert report.total("train") + report.total("val") == counted.total()
    assert f"val: 2 images, {report.total('val')} phrases" in report.text()


def test_deterministic_and_independent_of_the_other_images(coco: CocoFile, tmp_path: Path) -> None:
    many_images(coco, 6)
    prepare(coco, tmp_path / "a.lmdb")
    prepare(coco, tmp_path / "b.lmdb")
    assert contents(tmp_path / "a.lmdb") == contents(tmp_path / "b.lmdb")
    _, whole = prepare(coco, tmp_path / "a.lmdb")  # finished: read, not made again
    _, other_seed = prepare(coco, tmp_path / "c.lmdb", seed=1)
    coco.images = [coco.images[4], coco.images[2]]
    _, part = prepare(coco, tmp_path / "d.lmdb")
    assert part.phrases("5") == whole.phrases("5")
    ids = [str(key) for key in range(1, 7)]
    assert [whole.phrases(key) for key in ids] != [other_seed.phrases(key) for key in ids]


KILL_AFTER_TWO_BATCHES = """
import os, signal, sys
from pathlib import Path
from training import prepare
from training.data import store_building
from training.data.lmdb_store import PhraseStoreWriter

store_building._BATCH_IMAGES = 3
add, done = PhraseStoreWriter.add, []

def add_and_die(self, batch, *more):
    add(self, batch, *more)
    done.append(1)
    if len(done) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

PhraseStoreWriter.add = add_and_die
annotations, root, out = map(Path, sys.argv[1:])
prepare.prepare_instances(annotations, root, out, show_progress=False)
"""


def test_a_killed_run_continues_to_the_same_content(
    coco: CocoFile, tmp_path: Path, repo_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many_images(coco, 13)
    coco.images[1]["file_name"] = "gone.jpg"  # a fault before the kill is still reported after
    killed = tmp_path / "killed.lmdb"
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            KILL_AFTER_TWO_BATCHES,
            str(coco.save()),
            str(coco.folder),
            str(killed),
        ],
        cwd=repo_root,
        check=False,
    )
    assert result.returncode == -signal.SIGKILL
    stored = [key for key in contents(killed) if key.startswith(b"image/")]
    assert len(stored) == 5
    monkeypatch.setattr("training.data.store_building._BATCH_IMAGES", 3)
    resumed, _ = prepare(coco, killed)
    straight, _ = prepare(coco, tmp_path / "straight.lmdb")
    assert contents(killed) == contents(tmp_path / "straight.lmdb")
    assert resumed == straight and len(resumed.faults) == 1


def test_other_input_does_not_continue_a_store(coco: CocoFile, tmp_path: Path) -> None:
    many_images(coco, 2)
    prepare(coco, tmp_path / "s.lmdb")
    with pytest.raises(ValueError, match="another seed"):
        prepare(coco, tmp_path / "s.lmdb", seed=5)
    with pytest.raises(ValueError, match="other rules"):
        prepare(coco, tmp_path / "s.lmdb", loose_colours=True)


def nouns_said(store: PhraseStore, image_id: str) -> str:
    return " / ".join(phrase.phrase for phrase in store.phrases(image_id))


def test_incomplete_classes_are_not_mentioned(coco: CocoFile, tmp_path: Path) -> None:
    """Crowds, faulty masks, LVIS's non-exhaustive classes: unknown, so not even a reference."""
    boxes = [("dog", LEFT), ("dog", RIGHT), ("kite", HIGH)]
    crowd = coco.image(boxes)
    rle = {"size": [HEIGHT, WIDTH], "counts": [0, 500, HEIGHT * WIDTH - 500]}
    coco.annotate(crowd, "kite", rle, iscrowd=1)
    faulty = coco.image(boxes)
    coco.annotate(faulty, "kite", [[1, 2, 3]])
    coco.image(boxes, not_exhaustive_category_ids=[CATEGORIES.index("kite") + 1])
    whole = coco.image(boxes)
    report, store = prepare(coco, tmp_path / "s.lmdb")
    for image_id in ("1", "2", "3"):
        said = nouns_said(store, image_id)
        assert "dog" in said and "kite" not in said
    assert "the kite" in nouns_said(store, str(whole))
    assert len(report.faults) == 1 and "annotation 8 of image 2" in report.faults[0]


def test_a_class_that_is_left_out_is_not_mentioned(coco: CocoFile, tmp_path: Path) -> None:
    coco.image([("dog", LEFT), ("dog", RIGHT)], source="coco-partial")
    coco.image([("cloud", LEFT), ("kite", HIGH)], source="coco-partial")
    _, store = prepare(coco, tmp_path / "s.lmdb")
    assert "kite" not in nouns_said(store, "1") and "dog" in nouns_said(store, "1")
    assert "dog" not in nouns_said(store, "2")


def test_a_broader_class_beside_a_narrower_one_is_not_decided(
    coco: CocoFile, tmp_path: Path
) -> None:
    policies = {"fashion": AnnotationPolicy(covers={"bag": frozenset({"purse"})})}
    coco.image([("bag", LEFT), ("purse", RIGHT)], source="fashion")
    coco.image([("bag", LEFT)], source="fashion")
    coco.image([("bag", LEFT), ("purse", RIGHT)], source="other")
    _, store = prepare(coco, tmp_path / "s.lmdb", policies=policies)
    assert "bag" not in nouns_said(store, "1") and "purse" in nouns_said(store, "1")
    assert "bag" in nouns_said(store, "2")
    assert "bag" in nouns_said(store, "3")


def test_unnamed_classes(coco: CocoFile, tmp_path: Path) -> None:
    policies = {"": AnnotationPolicy(unnamed=frozenset({"kite"}))}
    coco.image([("dog", LEFT), ("kite", HIGH)])
    _, store = prepare(coco, tmp_path / "s.lmdb", policies=policies)
    assert "kite" not in nouns_said(store, "1")


def test_faulty_images_are_listed_and_left_out(coco: CocoFile, tmp_path: Path) -> None:
    for _ in range(5):
        coco.image([("dog", LEFT)])
    coco.images[0]["file_name"] = "missing.jpg"
    (coco.folder / "002.jpg").write_bytes(b"not a photo")
    broken = (coco.folder / "003.jpg").read_bytes()
    (coco.folder / "003.jpg").write_bytes(broken[: len(broken) // 2])
    coco.images[3]["width"] = WIDTH + 1
    coco.annotate(99, "dog", [[0, 0, 5, 0, 5, 5]])
    coco.annotations.append({"id": 50, "image_id": 5, "category_id": 77, "segmentation": []})
    report, store = prepare(coco, tmp_path / "s.lmdb")
    assert store.image_ids("train") == ["5"]
    faults = "\n".join(report.faults)
    for words in (
        "image 1: no file missing.jpg",
        "image 2: 002.jpg cannot be read",
        "image 3: 003.jpg cannot be read",
        "image 4: 004.jpg is 128 x 96, annotated 129 x 96",
        "annotations of image 99: no such image",
        "annotation 50: unknown category 77",
    ):
        assert words in faults
    assert len(report.faults) == 6
    assert faults.splitlines()[0] in report.text()


def test_other_formats_are_stored_as_jpeg(coco: CocoFile, tmp_path: Path) -> None:
    coco.image([("dog", LEFT)], file_name="photo.png")
    _, store = prepare(coco, tmp_path / "s.lmdb")
    assert store.jpeg("1")[:3] == b"\xff\xd8\xff"


def test_nothing_usable_is_an_error(coco: CocoFile, tmp_path: Path) -> None:
    coco.image([("dog", LEFT)])
    annotations = coco.save()
    with pytest.raises(ValueError, match=r"no image gave a phrase.*file names start from"):
        prepare_instances(annotations, tmp_path, tmp_path / "s.lmdb", show_progress=False)


@pytest.mark.parametrize(
    ("content", "words"), [("{", "is not JSON"), ('{"images": []}', "lacks"), ("[]", "lacks")]
)
def test_unusable_annotation_files(tmp_path: Path, content: str, words: str) -> None:
    path = tmp_path / "annotations.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=words):
        read_annotations(path)
    with pytest.raises(ValueError, match="no annotation file at"):
        read_annotations(tmp_path / "none.json")


def test_the_preview_shows_the_tinted_targets(coco: CocoFile, tmp_path: Path) -> None:
    many_images(coco, 4)
    report, store = prepare(coco, tmp_path / "s.lmdb")
    sheet = tmp_path / "sheets" / "sheet.png"
    drawn = render_preview(store, sheet, split="train", count=7, seed=3)
    assert drawn == 7
    with Image.open(sheet) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
        assert image.format == "PNG"
    assert pixels.shape[1] == 5 * 300 and pixels.shape[0] > 2 * 300
    tint = (pixels[..., 0] > 150) & (pixels[..., 1] < 60) & (pixels[..., 2] > 60)
    cells = [tint[: pixels.shape[0] // 2, c * 300 : (c + 1) * 300].sum() for c in range(5)]
    assert min(cells) > 100
    many = render_preview(store, sheet, split="train", count=10_000)
    assert many == report.total("train")
    with pytest.raises(ValueError, match="try another split"):
        render_preview(store, sheet, split="test")


def test_the_photo_pack(shared_dir: Path, tmp_path: Path) -> None:
    """A few photos of each source: the rules of its annotation, and masks equal to COCO's."""
    pack = shared_dir / "data" / "photos"
    content = json.loads((pack / "annotations.json").read_text())
    seen: Counter[str] = Counter()
    chosen = []
    for row in content["images"]:
        seen[row["source"]] += 1
        if seen[row["source"]] <= 5:
            chosen.append(row)
    ids = {row["id"] for row in chosen}
    content["images"] = chosen
    content["annotations"] = [row for row in content["annotations"] if row["image_id"] in ids]
    annotations = tmp_path / "annotations.json"
    annotations.write_text(json.dumps(content))
    report = prepare_instances(annotations, pack, tmp_path / "s.lmdb", show_progress=False)
    store = PhraseStore(tmp_path / "s.lmdb")
    assert not report.faults
    assert {key.split("/")[1] for key in report.images} == set(POLICIES)
    names = {row["id"]: clean_category_name(row["name"]) for row in content["categories"]}
    for image_id in store.image_ids("train") + store.image_ids("val"):
        image = store.image(image_id)
        masks: dict[str, np.ndarray] = {}
        for row in content["annotations"]:
            if str(row["image_id"]) == image_id:
                rle = row["segmentation"]
                if isinstance(rle, list):
                    rle = mask_api.merge(mask_api.frPyObjects(rle, image.height, image.width))
                name = names[row["category_id"]]
                mask = mask_api.decode(rle).astype(bool)
                masks[name] = masks.get(name, np.zeros_like(mask)) | mask
        for phrase in store.phrases(image_id):
            target = decode_rle(phrase.rle)
            assert phrase.class_name in masks
            assert target.any() and not (target & ~masks[phrase.class_name]).any()
            whole = bool((target == masks[phrase.class_name]).all())
            assert whole or phrase.discriminative
            if image.source == "clothing-co-parsing":
                assert phrase.kind in ("class", "colour")


def test_a_discriminative_store_has_the_photos_with_siblings_and_more_about_them(
    tmp_path: Path,
) -> None:
    """Five dogs in a row give more ordinals than the usual three; one dog alone gives no photo."""
    made = CocoFile(tmp_path)
    row = [("dog", (4 + 24 * place, 40, 20 + 24 * place, 56)) for place in range(5)]
    several = str(made.image(row, split="train"))
    made.image(row[:1], split="train")
    file = made.save()
    stores = []
    for discriminative in (False, True):
        out = tmp_path / f"{discriminative}.lmdb"
        prepare_instances(file, tmp_path, out, discriminative=discriminative, show_progress=False)
        stores.append(PhraseStore(out))
    usual, telling = stores
    assert len(usual.image_ids("train")) == 2
    assert telling.image_ids("train") == [several]
    few, more = (
        Counter(phrase.kind for phrase in store.phrases(several) if phrase.discriminative)
        for store in stores
    )
    assert few["ordinal"] == 3 < more["ordinal"]
    assert all(more[kind] >= few[kind] for kind in few)
