"""The 31 evaluation subsets of PhraseCut that follow from its annotation files.

The official tool has twelve more (stuff and things, kinds of attributes), which rest on word lists
of its own; they are not reported here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.data.phrasecut import PhraseCutImage, PhraseCutTask, read_json_text

SUBSETS: tuple[str, ...] = (
    "all",
    *("c_coco", "c20", "c21-100", "c101-500", "c500+", "c100", "c500"),
    *("i_single", "i_multi", "i_many"),
    *("p_name", "p_att+", "p_rel+", "p_verbose", "p_att", "p_attm", "p_rel", "p_relm", "p_att_rel"),
    *("s_small", "s_mid", "s_large"),
    *("a20", "a21-100", "a101-200", "a200+", "a100", "a200"),
    *("d_cocotv", "d_notcocotv"),
)
RANKS_FILE = "name_att_rel_count.json"
# Ranks of what the file does not name; the official tool's values.
_UNRANKED_CATEGORY, _UNRANKED_ATTRIBUTE = 501, 201
_SUBSET_OF_TYPE = {
    "name": "p_name",
    "attribute": "p_att+",
    "relation": "p_rel+",
    "verbose": "p_verbose",
}
_COCO_TEXT = """
    person, bicycle, car, motorcycle, airplane, bus, train, truck, boat, traffic light,
    fire hydrant, stop sign, parking meter, bench, bird, cat, dog, horse, sheep, cow, elephant,
    bear, zebra, giraffe, backpack, umbrella, handbag, tie, suitcase, frisbee, skis, snowboard,
    sports ball, kite, baseball bat, baseball glove, skateboard, surfboard, tennis racket, bottle,
    wine glass, cup, fork, knife, spoon, bowl, banana, apple, sandwich, orange, broccoli, carrot,
    hot dog, pizza, donut, cake, chair, couch, potted plant, bed, dining table, toilet, tv, laptop,
    mouse, remote, keyboard, cell phone, microwave, oven, toaster, sink, refrigerator, book, clock,
    vase, scissors, teddy bear, hair drier, toothbrush"""
_COCO_NAMES = frozenset(" ".join(_COCO_TEXT.split()).split(", "))


@dataclass(frozen=True)
class Ranks:
    """How common categories and attributes are: 0 is the most common."""

    categories: Mapping[str, int]
    attributes: Mapping[str, int]

    @classmethod
    def read(cls, root: Path) -> Ranks:
        """From name_att_rel_count.json of a VGPhraseCut_v0 folder.

        Raises:
            ValueError: the file is missing or of another form.
        """
        path = root / RANKS_FILE
        text = read_json_text(path)
        try:
            content = json.loads(text)
            return cls(_ranks(content["cat"]), _ranks(content["att"]))
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(
                f"{path} does not hold lists 'cat' and 'att' of [name, count] ({error!r}); "
                "download it again"
            ) from error


def subsets_of(
    task: PhraseCutTask, image: PhraseCutImage, mask: npt.NDArray[np.bool_], ranks: Ranks
) -> tuple[str, ...]:
    """The subsets of a task in the order of SUBSETS, without "all".

    Args:
        mask: the task's ground truth (H, W) at the annotated size.
    """
    held = {
        *_by_category(task.name, ranks),
        *_by_structure(task),
        *_by_attributes(task, ranks),
        _by_instances(len(task.instance_boxes)),
        _by_size(int(np.count_nonzero(mask)) / (image.width * image.height)),
        "d_notcocotv" if image.coco_id is None else "d_cocotv",
    }
    return tuple(name for name in SUBSETS if name in held)


def _by_category(name: str, ranks: Ranks) -> Iterator[str]:
    if name in _COCO_NAMES:
        yield "c_coco"
    rank = ranks.categories.get(name, _UNRANKED_CATEGORY)
    if rank < 20:
        yield "c20"
    elif rank < 100:
        yield "c21-100"
    elif rank < 500:
        yield "c101-500"
    else:
        yield "c500+"
    if rank < 100:
        yield "c100"
    if rank < 500:
        yield "c500"


def _by_attributes(task: PhraseCutTask, ranks: Ranks) -> Iterator[str]:
    """By the most common of the attributes."""
    found = (ranks.attributes.get(name, _UNRANKED_ATTRIBUTE) for name in task.attributes)
    rank = min(found, default=_UNRANKED_ATTRIBUTE)
    if rank < 20:
        yield "a20"
    elif rank < 100:
        yield "a21-100"
    elif rank < 200:
        yield "a101-200"
    else:
        yield "a200+"
    if rank < 100:
        yield "a100"
    if rank < 200:
        yield "a200"


def _by_structure(task: PhraseCutTask) -> Iterator[str]:
    if task.type in _SUBSET_OF_TYPE:
        yield _SUBSET_OF_TYPE[task.type]
    if task.attributes:
        yield "p_att"
    if len(task.attributes) > 1:
        yield "p_attm"
    if task.relations:
        yield "p_rel"
    if len(task.relations) > 1:
        yield "p_relm"
    if task.attributes and task.relations:
        yield "p_att_rel"


def _by_instances(count: int) -> str:
    """No instance at all is in none of the three."""
    if count >= 5:
        return "i_many"
    return {0: "", 1: "i_single"}.get(count, "i_multi")


def _by_size(share: float) -> str:
    """Exactly 2 % and exactly 20 % of the image are in the middle."""
    if share < 0.02:
        return "s_small"
    return "s_large" if share > 0.2 else "s_mid"


def _ranks(rows: list[tuple[str, int]]) -> dict[str, int]:
    ranks: dict[str, int] = {}
    for rank, row in enumerate(rows):
        ranks.setdefault(row[0], rank)  # a name twice keeps its better rank
    return ranks
