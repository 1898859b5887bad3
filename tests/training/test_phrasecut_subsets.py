"""PhraseCut's subsets at their borders. Equality with the official ones: test_phrasecut.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.data.phrasecut import PhraseCutImage, PhraseCutTask
from training.data.phrasecut_subsets import SUBSETS, Ranks, subsets_of

RANKS = Ranks(
    {f"thing {rank}": rank for rank in range(600)}, {f"kind {rank}": rank for rank in range(300)}
)


def subsets(pixels: int = 50, coco_id: int | None = 5, **fields: Any) -> set[str]:
    """Subsets of a task on a photo of 1,000 pixels."""
    row: dict[str, Any] = {
        "task_id": "1__1",
        "image_id": 1,
        "phrase": "",
        "name": "nothing",
        "attributes": (),
        "relations": (),
        "type": "name",
        "instance_boxes": ((0.0, 0.0, 1.0, 1.0),),
        "polygons": (),
    }
    mask = np.zeros(1000, dtype=bool)
    mask[:pixels] = True
    image = PhraseCutImage(1, coco_id, 50, 20, "val")
    found = subsets_of(PhraseCutTask(**{**row, **fields}), image, mask.reshape(20, 50), RANKS)
    assert list(found) == [name for name in SUBSETS if name in found] and "all" not in found
    return set(found)


def of_family(names: set[str], letter: str) -> set[str]:
    return {name for name in names if name.startswith(letter)}


def test_there_are_31() -> None:
    assert len(set(SUBSETS)) == len(SUBSETS) == 31 and SUBSETS[0] == "all"


@pytest.mark.parametrize(
    ("rank", "wanted"),
    [
        (0, {"c20", "c100", "c500"}),
        (19, {"c20", "c100", "c500"}),
        (20, {"c21-100", "c100", "c500"}),
        (99, {"c21-100", "c100", "c500"}),
        (100, {"c101-500", "c500"}),
        (499, {"c101-500", "c500"}),
        (500, {"c500+"}),
        (9999, {"c500+"}),
    ],
)
def test_categories(rank: int, wanted: set[str]) -> None:
    assert of_family(subsets(name=f"thing {rank}"), "c") == wanted


@pytest.mark.parametrize(
    ("ranks", "wanted"),
    [
        ([], {"a200+"}),
        ([9999], {"a200+"}),
        ([0], {"a20", "a100", "a200"}),
        ([20], {"a21-100", "a100", "a200"}),
        ([100], {"a101-200", "a200"}),
        ([200], {"a200+"}),
        ([250, 9999, 99, 150], {"a21-100", "a100", "a200"}),
    ],
)
def test_the_most_common_attribute_counts(ranks: list[int], wanted: set[str]) -> None:
    assert of_family(subsets(attributes=tuple(f"kind {rank}" for rank in ranks)), "a") == wanted


@pytest.mark.parametrize(
    ("pixels", "wanted"),
    [(0, "s_small"), (19, "s_small"), (20, "s_mid"), (200, "s_mid"), (201, "s_large")],
)
def test_sizes_include_both_borders_in_the_middle(pixels: int, wanted: str) -> None:
    assert of_family(subsets(pixels), "s") == {wanted}


@pytest.mark.parametrize(
    ("count", "wanted"),
    [(0, set()), (1, {"i_single"}), (2, {"i_multi"}), (4, {"i_multi"}), (5, {"i_many"})],
)
def test_instances(count: int, wanted: set[str]) -> None:
    assert of_family(subsets(instance_boxes=((0.0, 0.0, 1.0, 1.0),) * count), "i") == wanted


@pytest.mark.parametrize(
    ("kind", "attributes", "relations", "wanted"),
    [
        ("name", 0, 0, {"p_name"}),
        ("attribute", 1, 0, {"p_att+", "p_att"}),
        ("attribute", 2, 0, {"p_att+", "p_att", "p_attm"}),
        ("relation", 0, 1, {"p_rel+", "p_rel"}),
        ("relation", 0, 2, {"p_rel+", "p_rel", "p_relm"}),
        ("verbose", 1, 1, {"p_verbose", "p_att", "p_rel", "p_att_rel"}),
        ("something new", 0, 0, set()),
    ],
)
def test_structure(kind: str, attributes: int, relations: int, wanted: set[str]) -> None:
    found = subsets(
        type=kind, attributes=("red",) * attributes, relations=(("on", "tree"),) * relations
    )
    assert of_family(found, "p") == wanted


def test_coco() -> None:
    assert {"c_coco", "d_cocotv"} <= subsets(name="hair drier")
    assert "c_coco" not in subsets(name="hair")
    assert "d_notcocotv" in subsets(coco_id=None) and "d_cocotv" not in subsets(coco_id=None)


def test_ranks_from_their_file(tmp_path: Path) -> None:
    path = tmp_path / "name_att_rel_count.json"
    path.write_text(json.dumps({"cat": [["man", 9], ["sky", 5], ["man", 1]], "att": [["red", 2]]}))
    ranks = Ranks.read(tmp_path)
    assert dict(ranks.categories) == {"man": 0, "sky": 1} and dict(ranks.attributes) == {"red": 0}
    for content in ("[]", '{"cat": [], "at', '{"cat": [1], "att": []}'):
        path.write_text(content)
        with pytest.raises(ValueError, match=r"name_att_rel_count.json .*download it again"):
            Ranks.read(tmp_path)
    path.unlink()
    with pytest.raises(ValueError, match="give the folder VGPhraseCut_v0"):
        Ranks.read(tmp_path)
