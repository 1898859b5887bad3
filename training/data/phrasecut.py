"""Reading VGPhraseCut_v0, the PhraseCut data set, and its ground truth as the official tool has it.

A split is a file `refer_<split>.json`: a list of tasks, one phrase with the polygons of what it
means. `TaskFile` decodes its rows one at a time, because all polygons of the training split as
Python objects take several times the 344 MB of the file. `image_data_split.json` describes the
photos; sizes there, not those of the photo files, are the sizes of the masks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

SPLITS = ("train", "val", "test", "miniv")
TYPES = ("name", "attribute", "relation", "verbose")
IMAGES_FILE = "image_data_split.json"
# No photo is this wide; beyond it Pillow's line drawing would overflow its integers.
_FARTHEST = 2**24
_SPACE = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True)
class PhraseCutImage:
    """A row of image_data_split.json. Sizes in pixels; `coco_id` None outside COCO train and val.

    split: what the row says; which tasks a split has is said by its refer file.
    """

    image_id: int
    coco_id: int | None
    width: int
    height: int
    split: str


@dataclass(frozen=True, eq=False)
class PhraseCutTask:
    """A phrase and what it means.

    Attributes:
        task_id: the official name, "{image_id}__{ids of annotations}".
        name: the category word of the phrase.
        attributes: the phrase's attributes, "red", "in background".
        relations: (predicate, other thing's name) each.
        type: one of TYPES: what it takes to tell the target apart, by the data set's authors.
        instance_boxes: one (x, y, width, height) an instance, in pixels.
        polygons: all polygons of all instances, float64 (points, 2) each, x before y.
    """

    task_id: str
    image_id: int
    phrase: str
    name: str
    attributes: tuple[str, ...]
    relations: tuple[tuple[str, str], ...]
    type: str
    instance_boxes: tuple[tuple[float, ...], ...]
    polygons: tuple[npt.NDArray[np.float64], ...]


@dataclass(frozen=True)
class PhraseCutFiles:
    """A VGPhraseCut_v0 folder: its photos by id, and lines about broken rows of their file."""

    root: Path
    images: Mapping[int, PhraseCutImage]
    faults: tuple[str, ...] = ()

    @property
    def images_root(self) -> Path:
        """The folder of the photos."""
        return self.root / "images"

    def photo(self, image_id: int) -> Path:
        """The file of a photo, which may be missing."""
        return self.images_root / f"{image_id}.jpg"


def read_phrasecut(root: Path) -> PhraseCutFiles:
    """Read image_data_split.json. A broken row of it is left out and listed.

    Raises:
        ValueError: the file is missing or no JSON list.
    """
    images: dict[int, PhraseCutImage] = {}
    faults = []
    for number, (_, row) in enumerate(
        iterate_rows(read_json_text(root / IMAGES_FILE), IMAGES_FILE)
    ):
        try:
            image = _parse_image(row)
        except ValueError as error:
            faults.append(f"{IMAGES_FILE} row {number}: {error}")
            continue
        images.setdefault(image.image_id, image)
    return PhraseCutFiles(root, images, tuple(faults))


def load_tasks(root: Path, split: str) -> list[PhraseCutTask]:
    """All tasks of a split in the order of its file.

    split: one of SPLITS, or several joined by "_" as the official tool has them: "val_miniv" is
        the whole validation set.

    Raises:
        ValueError: unknown split, no such file, or a broken row in it.
    """
    tasks = []
    for name in split.split("_"):
        path = refer_file(root, name)
        for number, (_, row) in enumerate(iterate_rows(read_json_text(path), path.name)):
            try:
                tasks.append(parse_task(row))
            except ValueError as error:
                raise ValueError(f"{path.name} row {number}: {error}; download it again") from error
    return tasks


def refer_file(root: Path, split: str) -> Path:
    """The task file of a split. ValueError for a split that PhraseCut does not have."""
    if split not in SPLITS:
        raise ValueError(f"PhraseCut has no split {split!r}; choose from {', '.join(SPLITS)}")
    return root / f"refer_{split}.json"


def target_mask(
    polygons: Sequence[npt.ArrayLike], height: int, width: int
) -> npt.NDArray[np.bool_]:
    """The official ground truth (H, W) bool: every polygon filled, nothing cut out.

    As PhraseCutDataset's `polygons_to_mask` has it: vertices are truncated toward zero, a polygon
    of fewer than two points is skipped, fill and outline are both drawn, polygons are united. The
    pixels are Pillow's, whose versions differ along edges.
    """
    canvas = Image.new("L", (width, height), 0)
    draw = ImageDraw.Draw(canvas)
    for polygon in polygons:
        points = np.asarray(polygon, dtype=np.float64)
        if len(points) >= 2:
            flat = points.astype(np.int64).ravel().tolist()
            # Drawing on what is drawn already is the union: a polygon only ever sets pixels.
            draw.polygon(flat, fill=1, outline=1)
    return np.asarray(canvas, dtype=bool)


@dataclass
class TaskFile:
    """The tasks of one refer file by photo, decoded only when they are asked for.

    Attributes:
        rows: where each photo's tasks begin in the text, in file order.
        task_ids: every task's id.
        faults: lines about rows that name no photo or no task, or a task named before.
    """

    name: str
    text: str = field(repr=False)
    rows: dict[int, list[int]] = field(default_factory=dict, repr=False)
    task_ids: set[str] = field(default_factory=set, repr=False)
    faults: list[str] = field(default_factory=list)
    n_rows: int = 0

    @classmethod
    def open(cls, path: Path) -> TaskFile:
        """Read a refer file and find its rows.

        Raises:
            ValueError: the file is missing, cut off or no JSON list.
        """
        made = cls(path.name, read_json_text(path))
        for begin, row in iterate_rows(made.text, path.name):
            made.n_rows += 1
            number = made.n_rows - 1
            image_id, task_id = (
                (row.get("image_id"), row.get("task_id")) if isinstance(row, dict) else (None, None)
            )
            if not isinstance(image_id, int) or not isinstance(task_id, str):
                made.faults.append(f"{path.name} row {number} names no photo or no task")
            elif task_id in made.task_ids:
                made.faults.append(f"{path.name} row {number}: task {task_id} was there before")
            else:
                made.task_ids.add(task_id)
                made.rows.setdefault(image_id, []).append(begin)
        return made

    def tasks(self, image_id: int) -> Iterator[PhraseCutTask | ValueError]:
        """A photo's tasks in file order; for a broken one a ValueError that says why."""
        for begin in self.rows.get(image_id, ()):
            row = _DECODER.raw_decode(self.text, begin)[0]
            try:
                yield parse_task(row)
            except ValueError as error:
                yield ValueError(f"task {row['task_id']}: {error}")


_DECODER = json.JSONDecoder()


def read_json_text(path: Path) -> str:
    """A file of the data set as text. ValueError naming the remedy where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}); give the folder VGPhraseCut_v0 that the "
            "data set's download makes, with this file in it"
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not JSON ({error}); download it again") from error


def iterate_rows(text: str, name: str) -> Iterator[tuple[int, Any]]:
    """Place in the text and value of each element of a JSON list.

    Raises:
        ValueError: the text is no JSON list, or ends within it; `name` says of which file.
    """
    place = _skip_space(text, 0)
    if text[place : place + 1] != "[":
        raise ValueError(f"{name} is not a JSON list; download it again")
    place = _skip_space(text, place + 1)
    if text[place : place + 1] == "]":
        return
    while True:
        try:
            value, end = _DECODER.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{name} is cut off or damaged ({error}); download it again"
            ) from error
        yield place, value
        place = _skip_space(text, end)
        mark = text[place : place + 1]
        if mark == "]":
            return
        if mark != ",":
            raise ValueError(f"{name} is cut off or damaged (character {place}); download it again")
        place = _skip_space(text, place + 1)


def parse_task(row: Any) -> PhraseCutTask:
    """A row of a refer file. ValueError says what is broken."""
    try:
        structure = row["phrase_structure"]
        return PhraseCutTask(
            task_id=_string(row["task_id"]),
            image_id=int(row["image_id"]),
            phrase=_string(row["phrase"]),
            name=_string(structure["name"]),
            attributes=tuple(_string(attribute) for attribute in structure["attributes"]),
            relations=tuple(
                (_string(predicate), _string(other))
                for predicate, other in structure["relation_descriptions"]
            ),
            type=_string(structure["type"]),
            instance_boxes=tuple(tuple(map(float, box)) for box in row["instance_boxes"]),
            polygons=tuple(
                _parse_polygon(polygon) for instance in row["Polygons"] for polygon in instance
            ),
        )
    except KeyError as error:
        raise ValueError(f"no {error.args[0]}") from error
    except (TypeError, OverflowError) as error:
        raise ValueError(str(error)) from error


def _parse_polygon(points: Any) -> npt.NDArray[np.float64]:
    array = np.asarray(points, dtype=np.float64)
    if array.size == 0:
        return np.zeros((0, 2))
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError("a polygon is not a list of [x, y]")
    if not (np.abs(array) < _FARTHEST).all():  # NaN is not smaller either
        raise ValueError("a polygon has a point that is not finite or far outside")
    return array


def _parse_image(row: Any) -> PhraseCutImage:
    try:
        image = PhraseCutImage(
            image_id=int(row["image_id"]),
            # The official tool takes 0 for none as well.
            coco_id=int(row["coco_id"]) if row.get("coco_id") else None,
            width=int(row["width"]),
            height=int(row["height"]),
            split=_string(row["split"]),
        )
    except KeyError as error:
        raise ValueError(f"no {error.args[0]}") from error
    except (TypeError, AttributeError) as error:
        raise ValueError(str(error)) from error
    if image.width < 1 or image.height < 1:
        raise ValueError(f"size {image.width} x {image.height}")
    return image


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text")
    return value


def _skip_space(text: str, place: int) -> int:
    found = _SPACE.match(text, place)
    assert found is not None
    return found.end()
