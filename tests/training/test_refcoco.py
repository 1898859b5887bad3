"""RefCOCO's files to a store, through the command: masks, sentences, splits, faults."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as mask_api

from training.__main__ import main
from training.data.lmdb_store import PhraseStore, decode_rle
from training.data.preview import render_preview
from training.data.refcoco import published_key
from training.data.store_building import PrepareReport
from training.prepare_refcoco import RefCocoSource, comparison

HEIGHT, WIDTH = 60, 80
PERSON, DOG = 1, 18
BOXES = {1: (5, 10, 25, 50), 2: (50, 5, 70, 55), 3: (30, 30, 45, 50)}  # x0, y0, x1, y1
CATEGORY = {1: PERSON, 2: PERSON, 3: DOG}


def box_mask(*keys: int) -> NDArray[np.bool_]:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    for key in keys:
        x0, y0, x1, y1 = BOXES[key]
        mask[y0:y1, x0:x1] = True
    return mask


def run_lengths(mask: NDArray[np.bool_], compressed: bool) -> dict[str, Any]:
    if compressed:
        rle = mask_api.encode(np.asfortranarray(mask, dtype=np.uint8))
        return {"size": rle["size"], "counts": rle["counts"].decode()}
    flat = mask.flatten(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff([0, *changes, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": ([0] if flat[0] else []) + counts}


class RefSet:
    """RefCOCO in miniature: photos 9, 25, 30, ... of two people and a dog each."""

    def __init__(self, folder: Path, image_ids: tuple[int, ...] = (9, 25, 30)) -> None:
        self.folder = folder / "refcoco"
        self.photos = folder / "train2014"
        self.folder.mkdir()
        self.photos.mkdir()
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self.refs: list[Any] = []
        for image_id in image_ids:
            self.image(image_id)

    def image(self, image_id: int) -> None:
        pixels = np.full((HEIGHT, WIDTH, 3), 90 + image_id, dtype=np.uint8)
        for key, colour in ((1, (200, 20, 30)), (2, (30, 60, 190)), (3, (30, 150, 40))):
            pixels[box_mask(key)] = colour
            x0, y0, x1, y1 = BOXES[key]
            self.annotations.append(
                {
                    "id": image_id * 10 + key,
                    "image_id": image_id,
                    "category_id": CATEGORY[key],
                    "iscrowd": 0,
                    "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                }
            )
        name = f"COCO_train2014_{image_id:012d}.jpg"
        Image.fromarray(pixels).save(self.photos / name, quality=95)
        row = {"id": image_id, "file_name": name, "height": HEIGHT, "width": WIDTH}
        self.images.append(row)

    def ref(self, image_id: int, ann_id: Any, split: str, *texts: str, **fields: Any) -> None:
        ref_id = len(self.refs) + 100
        sentences = [
            {"sent_id": ref_id * 10 + i, "sent": text, "raw": text.upper(), "tokens": text.split()}
            for i, text in enumerate(texts)
        ]
        category = self.annotation(ann_id)["category_id"] if isinstance(ann_id, int) else -1
        row = {"ref_id": ref_id, "image_id": image_id, "ann_id": ann_id, "split": split}
        row |= {"sentences": sentences, "category_id": category}
        row |= {"file_name": f"COCO_train2014_{image_id:012d}_{ref_id}.jpg"}
        self.refs.append(row | fields)

    def annotation(self, ann_id: int) -> dict[str, Any]:
        return next((row for row in self.annotations if row["id"] == ann_id), {"category_id": 1})

    def save(self, name: str = "refs(unc).p") -> list[str]:
        """Write the files; the command that prepares them, but for --out."""
        categories = [{"id": PERSON, "name": "person"}, {"id": DOG, "name": "dog"}]
        content = {"images": self.images, "annotations": self.annotations, "categories": categories}
        (self.folder / "instances.json").write_text(json.dumps(content))
        path = self.folder / name
        if name.endswith(".json"):
            path.write_text(json.dumps(self.refs))
        else:
            path.write_bytes(pickle.dumps(self.refs, protocol=2))
        return ["prepare", "refcoco", "--refs", str(path), "--images", str(self.photos)]


@pytest.fixture
def refset(tmp_path: Path) -> RefSet:
    return RefSet(tmp_path)


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[[list[str]], PhraseStore]:
    def run(command: list[str]) -> PhraseStore:
        assert main([*command, "--out", str(tmp_path / "s.lmdb")]) == 0
        return PhraseStore(tmp_path / "s.lmdb")

    return run


Prepare = Callable[[list[str]], PhraseStore]


def test_one_record_a_sentence(refset: RefSet, prepare: Prepare) -> None:
    refset.ref(25, 251, "testA", "woman on the left", "lady in red")
    refset.ref(9, 93, "train", "the dog")
    refset.ref(9, 92, "train", "blue man")
    refset.ref(30, 302, "val", "rightmost")
    store = prepare(refset.save())
    assert store.splits == ["testA", "train", "val"]
    assert store.image_ids("train") == ["9"] and store.coco_id("9") == 9
    assert store.image("25").source == "refcoco" and store.image("25").coco_id == 25
    name = "COCO_train2014_000000000025.jpg"
    assert store.jpeg("25") == (refset.photos / name).read_bytes()

    left, red = store.phrases("25")
    assert (left.phrase, left.swapped) == ("woman on the left", "woman on the right")
    assert (red.phrase, red.swapped) == ("lady in red", None)
    assert (left.task_id, red.task_id) == ("100_1000", "100_1001")
    assert left.kind == "referring" and left.class_name == "person" and left.discriminative
    assert left.swapped_rle is None and left.group == red.group and left.subsets == ()
    for phrase in (left, red):
        assert (decode_rle(phrase.rle) == box_mask(1)).all()

    dog, man = store.phrases("9")
    assert (dog.class_name, man.class_name) == ("dog", "person") and dog.group != man.group
    assert man.discriminative and not dog.discriminative  # it is the only dog
    assert (decode_rle(dog.rle) == box_mask(3)).all() and (decode_rle(man.rle) == box_mask(2)).all()


@pytest.mark.parametrize("compressed", [False, True])
def test_run_lengths_and_crowds(refset: RefSet, prepare: Prepare, compressed: bool) -> None:
    crowd = box_mask(1, 2)
    crowd[0, 0] = True  # run lengths that begin with the mask
    refset.annotation(91)["segmentation"] = run_lengths(crowd, compressed)
    refset.annotation(91)["iscrowd"] = 1
    refset.annotation(93)["segmentation"] = run_lengths(box_mask(3), compressed)
    refset.ref(9, 91, "train", "everyone")
    refset.ref(9, 93, "train", "dog")
    everyone, dog = prepare(refset.save()).phrases("9")
    assert (decode_rle(everyone.rle) == crowd).all() and everyone.discriminative
    assert (decode_rle(dog.rle) == box_mask(3)).all()


def test_a_photo_in_several_splits(
    refset: RefSet, prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    """RefCOCOg's google split divides objects, so a photo can train and validate."""
    refset.ref(9, 91, "train", "red")
    refset.ref(9, 92, "val", "blue")
    refset.ref(25, 251, "train", "red")
    store = prepare(refset.save("refs(google).p"))
    assert store.image_ids("train") == ["9:train", "25"] and store.image_ids("val") == ["9:val"]
    assert store.coco_id("9:train") == store.coco_id("9:val") == 9  # so a filter can see it
    assert [phrase.phrase for phrase in store.phrases("9:val")] == ["blue"]
    printed = capsys.readouterr().out
    assert "1 photos are in several splits" in printed
    assert "photos known to be COCO's: 3 of 3" in printed


@pytest.mark.parametrize("nothing", [-1, [], [-1], None])
def test_no_target_and_several(refset: RefSet, prepare: Prepare, nothing: Any) -> None:
    """gRefCOCO: JSON, a list of annotations, none for a thing that is not there."""
    refset.ref(9, [91, 92], "val", "both people")
    refset.ref(9, nothing, "val", "the giraffe")
    refset.ref(9, [91, 93], "val", "red one and the dog")
    refset.ref(9, [93], "val", "dog")
    both, giraffe, mixed, dog = prepare(refset.save("grefs(unc).json")).phrases("9")
    assert (decode_rle(both.rle) == box_mask(1, 2)).all() and not both.discriminative
    assert decode_rle(giraffe.rle).shape == (HEIGHT, WIDTH) and not decode_rle(giraffe.rle).any()
    assert giraffe.class_name == "" and not giraffe.discriminative
    assert mixed.class_name == "dog and person" and mixed.discriminative
    assert (decode_rle(mixed.rle) == box_mask(1, 3)).all()
    assert [phrase.subsets for phrase in (both, giraffe, mixed, dog)] == [
        ("several_targets",),
        ("no_target",),
        ("several_targets",),
        (),
    ]
    assert len({phrase.group for phrase in (both, giraffe, mixed, dog)}) == 4


def test_faulty_items_are_listed_and_left_out(
    refset: RefSet, prepare: Prepare, capsys: pytest.CaptureFixture[str]
) -> None:
    for image_id in (41, 42, 43):
        refset.image(image_id)
        refset.ref(image_id, image_id * 10 + 1, "train", "red")
    (refset.photos / refset.images[3]["file_name"]).unlink()
    (refset.photos / refset.images[4]["file_name"]).write_bytes(b"no photo")
    refset.images[5]["height"] = HEIGHT + 1
    refset.ref(9, 91, "train", "red", " ")
    refset.ref(9, 999, "train", "nobody")
    refset.ref(9, 251, "train", "someone in another photo")
    refset.annotation(92)["segmentation"] = [[1, 2, 3]]
    refset.ref(9, 92, "train", "a broken mask")
    refset.ref(77, 91, "train", "an unknown photo")
    refset.ref(9, "91", "train", "a number in letters")
    refset.ref(9, 91, "train/9", "a strange split")
    refset.ref(9, 91, "train", "a ref twice", ref_id=103)
    refset.ref(9, 91, "train")
    refset.refs += [{"ref_id": 500}, "no ref"]
    store = prepare(refset.save())
    assert store.image_ids("train") == ["9"]
    assert [phrase.phrase for phrase in store.phrases("9")] == ["red"]
    printed = capsys.readouterr().out
    for words in (
        "image 41: no file COCO_train2014_000000000041.jpg",
        "image 42: COCO_train2014_000000000042.jpg cannot be read",
        "image 43: COCO_train2014_000000000043.jpg is 80 x 60, annotated 80 x 61",
        "sentence 1031 of ref 103: no words",
        "ref 104 of image 9: the image has no annotation 999",
        "ref 105 of image 9: the image has no annotation 251",
        "ref 106 of image 9: annotation 92: segmentation cannot be decoded",
        "ref 107: no image 77 in instances.json",
        "ref 108 (entry 8): ann_id '91' is no whole number and no list of them",
        "ref 109 (entry 9): 'train/9' is no name of a split",
        "ref 103 (entry 10): this id is taken",
        "ref 111 (entry 11): no sentence",
        "ref 500 (entry 12): no split",
        "ref ? (entry 13): not a dict",
        "faults: 14",
    ):
        assert words in printed


def test_the_raw_text_where_the_clean_one_is_blank(refset: RefSet, prepare: Prepare) -> None:
    refset.ref(9, 91, "train", "red")
    refset.refs[0]["sentences"][0] |= {"sent": "", "raw": " Red\none "}
    assert prepare(refset.save()).phrases("9")[0].phrase == "Red one"


class _Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.path}",)


def test_a_malicious_refs_file_ends_with_one_line(
    refset: RefSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refset.ref(9, 91, "train", "red")
    refset.refs.append(_Malicious(tmp_path / "ran"))
    assert main([*refset.save(), "--out", str(tmp_path / "s.lmdb")]) == 2
    error = capsys.readouterr().err
    assert "system" in error and error.count("\n") == 1
    assert not (tmp_path / "ran").exists() and not (tmp_path / "s.lmdb").exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("refs(unc).p", b"", "no readable pickle"),
        ("refs(unc).p", pickle.dumps({"refs": []}), "holds no list of refs"),
        ("grefs(unc).json", b"[", "is not JSON"),
        ("none.p", None, "no file at"),
    ],
)
def test_unusable_files(
    refset: RefSet,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes | None,
    words: str,
) -> None:
    command = refset.save(name)
    (refset.folder / name).unlink()
    if content is not None:
        (refset.folder / name).write_bytes(content)
    assert main([*command, "--out", str(tmp_path / "s.lmdb")]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_stopped_run_continues_to_the_same_content(
    refset: RefSet, prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for image_id in (9, 25, 30):
        refset.ref(image_id, image_id * 10 + 1, "train", "red")
    refset.ref(25, 999, "train", "a fault before the stop")
    command = refset.save()
    assert main([*command, "--out", str(tmp_path / "straight.lmdb")]) == 0
    monkeypatch.setattr("training.data.store_building._BATCH_IMAGES", 1)
    made: list[int] = []
    make = RefCocoSource.make

    def make_and_stop(source: RefCocoSource, index: int, report: PrepareReport) -> Any:
        made.append(index)
        if made == [0, 1, 2]:
            raise KeyboardInterrupt
        return make(source, index, report)

    monkeypatch.setattr(RefCocoSource, "make", make_and_stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(command)
    resumed, straight = prepare(command), PhraseStore(tmp_path / "straight.lmdb")
    assert made == [0, 1, 2, 2]  # nothing was made twice
    assert resumed.image_ids("train") == straight.image_ids("train") == ["9", "25", "30"]
    for key in straight.image_ids("train"):
        assert resumed.phrases(key) == straight.phrases(key)
    report = resumed.metadata()["progress"]["report"]
    assert report == straight.metadata()["progress"]["report"] and len(report["faults"]) == 1


def test_the_published_counts_stand_beside_ours(refset: RefSet, tmp_path: Path) -> None:
    assert published_key(Path("refcocog/refs(umd).p"), "refcocog") == ("refcocog", "umd")
    assert published_key(Path("refs.p"), "mine") == ("mine", "")
    assert comparison(PrepareReport(), ("mine", "")) == []
    equal = PrepareReport(
        images={"train/refcocog": 21899, "val/refcocog": 1300, "test/refcocog": 2599},
        phrases={
            "train/referring/refcocog": 80512,
            "val/referring/refcocog": 4896,
            "test/referring/refcocog": 9600,
        },
    )
    train, val, test = comparison(equal, ("refcocog", "umd"))
    assert train == (
        "refcocog umd train: published 21899 images, 80512 sentences; stored 21899, 80512"
    )
    assert not val.endswith("(differs)") and test.endswith("stored 2599, 9600 (differs)")


def test_the_preview_of_refs(refset: RefSet, prepare: Prepare, tmp_path: Path) -> None:
    refset.ref(9, 91, "val", "red woman on the left")
    refset.ref(9, [], "val", "nothing of this kind")
    assert render_preview(prepare(refset.save()), tmp_path / "sheet.png") == 2
