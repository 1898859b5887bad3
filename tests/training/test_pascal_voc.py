"""PASCAL VOC's palette PNGs to a store, through the command: void, difficult objects, faults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from training.__main__ import main
from training.data.lmdb_store import PhraseStore, decode_rle
from training.data.pascal_voc import CLASSES, count_annotated, decode_objects
from training.prepare_voc import VocSource

HEIGHT, WIDTH = 80, 120
AEROPLANE, BUS, PERSON, TV = 1, 6, 15, 20
NAMES = {AEROPLANE: "aeroplane", BUS: "bus", PERSON: "person", TV: "tvmonitor"}
PUBLISHED_NAMES = """aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse
motorbike person pottedplant sheep sofa train tvmonitor"""
LEFT, RIGHT, HIGH = (6, 20, 36, 60), (80, 20, 112, 60), (44, 4, 74, 24)
SEAM = 3

Things = list[tuple[int, tuple[int, int, int, int]]]


class Devkit:
    """VOC2012 in miniature; a thing is (class index, box) and gets a void seam around it."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "VOC2012"
        for name in (
            "ImageSets/Segmentation",
            "JPEGImages",
            "SegmentationObject",
            "SegmentationClass",
            "Annotations",
        ):
            (self.root / name).mkdir(parents=True)
        self.lists: dict[str, list[str]] = {}

    def image(self, split: str, name: str, things: Things, difficult: Things | None = None) -> None:
        """`difficult` things are void in the masks, and in the XML alone."""
        pixels = np.full((HEIGHT, WIDTH, 3), 128, dtype=np.uint8)
        objects, classes = (np.zeros((HEIGHT, WIDTH), dtype=np.uint8) for _ in range(2))
        for index, (kind, (x0, y0, x1, y1)) in enumerate([*(difficult or []), *things]):
            pixels[y0:y1, x0:x1] = ((200, 20, 30), (30, 60, 190), (30, 150, 40))[index % 3]
            objects[y0:y1, x0:x1] = classes[y0:y1, x0:x1] = 255
            if index >= len(difficult or []):
                inside = np.s_[y0 + SEAM : y1 - SEAM, x0 + SEAM : x1 - SEAM]
                objects[inside] = index - len(difficult or []) + 1
                classes[inside] = kind
        Image.fromarray(pixels).save(self.root / "JPEGImages" / f"{name}.jpg", quality=95)
        self.save("SegmentationObject", name, objects)
        self.save("SegmentationClass", name, classes)
        boxes = "".join(
            f"<object><name>{NAMES[kind]}</name><part><name>head</name></part></object>"
            for kind, _ in [*things, *(difficult or [])]
        )
        (self.root / "Annotations" / f"{name}.xml").write_text(f"<annotation>{boxes}</annotation>")
        self.lists.setdefault(split, []).append(name)
        for each, names in self.lists.items():
            path = self.root / "ImageSets" / "Segmentation" / f"{each}.txt"
            path.write_text("\n".join(names) + "\n")

    def save(self, folder: str, name: str, indices: NDArray[np.uint8]) -> None:
        image = Image.fromarray(indices)
        image.putpalette([value for i in range(256) for value in (i, 255 - i, i // 2)])
        image.save(self.root / folder / f"{name}.png")

    def command(self, *options: str) -> list[str]:
        return ["prepare", "voc", "--root", str(self.root), *options]


@pytest.fixture
def devkit(tmp_path: Path) -> Devkit:
    return Devkit(tmp_path)


Prepare = Callable[[list[str]], PhraseStore]


@pytest.fixture
def prepare(tmp_path: Path) -> Prepare:
    def run(command: list[str]) -> PhraseStore:
        assert main([*command, "--out", str(tmp_path / "s.lmdb")]) == 0
        return PhraseStore(tmp_path / "s.lmdb")

    return run


def inner(*boxes: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for x0, y0, x1, y1 in boxes:
        mask[y0 + SEAM : y1 - SEAM, x0 + SEAM : x1 - SEAM] = True
    return mask


def test_masks_are_the_objects_without_the_void(devkit: Devkit, prepare: Prepare) -> None:
    devkit.image("train", "2007_000032", [(PERSON, LEFT), (PERSON, RIGHT), (AEROPLANE, HIGH)])
    devkit.image("val", "2007_000033", [(TV, LEFT)])
    store = prepare(devkit.command())
    assert store.image_ids("train") == ["2007_000032"] and store.image_ids("val") == ["2007_000033"]
    assert store.image("2007_000032").source == "voc" and store.coco_id("2007_000032") is None
    photo = devkit.root / "JPEGImages" / "2007_000032.jpg"
    assert store.jpeg("2007_000032") == photo.read_bytes()
    phrases = store.phrases("2007_000032")
    expected = {
        "person": [inner(LEFT), inner(RIGHT), inner(LEFT, RIGHT)],
        "airplane": [inner(HIGH)],
    }
    for phrase in phrases:
        mask = decode_rle(phrase.rle)
        assert any((mask == each).all() for each in expected[phrase.class_name]), phrase.phrase
    left = [phrase for phrase in phrases if phrase.kind == "position" and "left" in phrase.phrase]
    assert left and all((decode_rle(each.rle) == inner(LEFT)).all() for each in left)
    assert {phrase.class_name for phrase in phrases} == {"person", "airplane"}
    assert {phrase.class_name for phrase in store.phrases("2007_000033")} == {"tv"}


def test_a_class_with_a_void_object_is_not_mentioned(
    devkit: Devkit, prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    devkit.image("val", "a", [(TV, LEFT), (PERSON, HIGH)], difficult=[(TV, RIGHT)])
    devkit.image("val", "b", [(TV, LEFT), (TV, RIGHT)])
    store = prepare(devkit.command("--splits", "val"))
    assert {phrase.class_name for phrase in store.phrases("a")} == {"person"}
    assert not any("tv" in phrase.phrase for phrase in store.phrases("a"))
    assert {phrase.class_name for phrase in store.phrases("b")} == {"tv"}
    assert "no folder Annotations" not in capsys.readouterr().out
    (devkit.root / "Annotations").rename(tmp_path / "elsewhere")
    out = tmp_path / "without.lmdb"
    assert main([*devkit.command("--splits", "val"), "--out", str(out)]) == 0
    assert "tv" in {phrase.class_name for phrase in PhraseStore(out).phrases("a")}
    assert "no folder Annotations" in capsys.readouterr().out


def test_the_class_of_an_object_is_that_of_most_of_its_pixels() -> None:
    objects, classes = np.zeros((2, 20, 20), dtype=np.uint8)
    objects[2:12, 2:12], classes[2:12, 2:12] = 1, 255
    classes[2:4, 2:12], classes[5, 5] = BUS, PERSON
    found = decode_objects(objects, classes)
    assert list(found) == ["bus"] and found["bus"][0].area == 100
    classes[2:4] = 0
    classes[5, 5] = 255
    with pytest.raises(ValueError, match="object 1 has class 0"):
        decode_objects(objects, classes)


def test_the_twenty_classes_in_their_published_order(tmp_path: Path) -> None:
    path = tmp_path / "all.xml"
    objects = "".join(f"<object><name>{name}</name></object>" for name in PUBLISHED_NAMES.split())
    path.write_text(f"<annotation>{objects}</annotation>")
    assert list(count_annotated(path)) == list(CLASSES)


def test_faulty_images_are_listed_and_left_out(
    devkit: Devkit, prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in "abcdefghi":
        devkit.image("train", name, [(PERSON, LEFT)])
    root = devkit.root
    (root / "JPEGImages" / "a.jpg").unlink()
    Image.new("RGB", (50, 50)).save(root / "JPEGImages" / "b.jpg")
    (root / "SegmentationObject" / "c.png").unlink()
    content = (root / "SegmentationClass" / "d.png").read_bytes()
    (root / "SegmentationClass" / "d.png").write_bytes(content[: len(content) // 2])
    Image.new("RGB", (WIDTH, HEIGHT)).save(root / "SegmentationObject" / "e.png")
    devkit.save("SegmentationClass", "f", np.zeros((HEIGHT, WIDTH), dtype=np.uint8))
    devkit.save("SegmentationClass", "g", np.zeros((HEIGHT, WIDTH + 1), dtype=np.uint8))
    (root / "Annotations" / "h.xml").write_text("<annotation>")
    store = prepare(devkit.command("--splits", "train"))
    assert store.image_ids("train") == ["i"]
    printed = capsys.readouterr().out
    for words in (
        "image a: no file a.jpg",
        f"image b: b.jpg is 50 x 50, annotated {WIDTH} x {HEIGHT}",
        "image c: no file SegmentationObject/c.png",
        "image d: SegmentationClass/d.png cannot be read",
        "image e: e.png has colours (RGB), not palette indices",
        "image f: object 1 has class 0, which is none of the twenty",
        f"image g: objects are {(HEIGHT, WIDTH)}, classes {(HEIGHT, WIDTH + 1)}",
        "image h: h.xml cannot be read",
        "faults: 8",
    ):
        assert words in printed


def test_lists(
    devkit: Devkit, prepare: Prepare, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    devkit.image("train", "a", [(PERSON, LEFT)])
    devkit.image("val", "b", [(PERSON, LEFT)])
    devkit.lists["trainval"] = ["a", "b"]
    devkit.image("trainval", "c", [(PERSON, LEFT)])
    assert prepare(devkit.command("--splits", "trainval")).image_ids("train") == ["a", "b", "c"]
    capsys.readouterr()
    for options, words in (
        (["--splits", "train,trainval"], "a is twice in the lists train, trainval"),
        (["--splits", "test"], "test.txt; give the folder that holds ImageSets"),
        (["--splits", "testA"], "unknown image list 'testA'"),
        (["--splits", "train", "--seed", "3"], "was made from other annotations, another seed"),
    ):
        assert main([*devkit.command(*options), "--out", str(tmp_path / "s.lmdb")]) == 2
        error = capsys.readouterr().err
        assert words in error and error.count("\n") == 1


def test_a_changed_mask_is_another_store(devkit: Devkit) -> None:
    devkit.image("train", "a", [(PERSON, LEFT)])
    before = VocSource(devkit.root, ("train",)).fingerprint
    assert VocSource(devkit.root, ("train",)).fingerprint == before
    devkit.image("val", "a", [(PERSON, RIGHT)])
    assert VocSource(devkit.root, ("train",)).fingerprint != before
