"""Layouts beside photos: what has no target stays out of the means, and the right thing is hit."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from training.__main__ import main
from training.data.drawn_layouts import KINDS, NO_TARGET, drawn_layouts, one_of_each_kind
from training.data.lmdb_store import (
    ImageRecord,
    PhraseRecord,
    PhraseStore,
    PhraseStoreWriter,
    decode_rle,
    encode_rle,
)
from training.data.phrase_records import ObjectRecord
from training.evaluate import evaluate
from training.evaluation_report import EvaluationReport
from training.picks import pick_of, pick_summaries


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> PhraseStore:
    """Twelve drawn ones, all in `val`."""
    path = tmp_path_factory.mktemp("drawn") / "layouts.lmdb"
    batch, objects = [], {}
    for number, (scene, phrases) in enumerate(itertools.islice(drawn_layouts(0), 12)):
        buffer = io.BytesIO()
        Image.fromarray(scene.image).save(buffer, "PNG")
        height, width = scene.image.shape[:2]
        record = ImageRecord(str(number), "val", "scenes", height, width, len(phrases))
        batch.append((record, buffer.getvalue(), phrases))
        objects[str(number)] = [
            ObjectRecord(name, group, encode_rle(thing.mask))
            for group, name in enumerate(sorted(scene.instances))
            for thing in scene.instances[name]
        ]
    with PhraseStoreWriter(path, {"maker": "test"}) as writer:
        writer.add(batch, {}, objects)
        writer.finish([record.image_id for record, _, _ in batch], {})
    return PhraseStore(path)


class Knowing:
    """Answers with the true masks; with `siblings` a phrase that chooses gets the others."""

    def __init__(self, store: PhraseStore, *, siblings: bool = False) -> None:
        self._answers = {
            store.photo(image_id).tobytes(): {
                phrase.phrase: _answer(store, image_id, phrase, siblings)
                for phrase in store.phrases(image_id)
            }
            for image_id in store.image_ids("val")
        }

    def predict(
        self, image: NDArray[np.uint8], phrases: Sequence[str]
    ) -> list[NDArray[np.float32]]:
        nothing = np.zeros(image.shape[:2], dtype=np.float32)
        known = self._answers[image.tobytes()]
        return [known.get(phrase, nothing) for phrase in phrases]


def _answer(
    store: PhraseStore, image_id: str, phrase: PhraseRecord, siblings: bool
) -> NDArray[np.float32]:
    mask = decode_rle(phrase.rle)
    if siblings and phrase.matched:
        objects = store.objects(image_id) or []
        same = [decode_rle(each.rle) for each in objects if each.group == phrase.group]
        others = np.any(same, axis=0) & ~mask
        mask = others if others.any() else mask
    return mask.astype(np.float32)


def test_what_has_no_target_is_judged_apart(layouts: PhraseStore) -> None:
    report = evaluate(Knowing(layouts), layouts, "val", 0.5, progress=False)
    asked = [
        phrase for image_id in layouts.image_ids("val") for phrase in layouts.phrases(image_id)
    ]
    without = sum(not decode_rle(phrase.rle).any() for phrase in asked)
    assert 0 < without < len(asked) == report.num_phrases
    assert report.overall["num"] == len(asked) - without
    assert report.mean_iou == report.discriminative["mean_iou"] == 1
    assert NO_TARGET not in report.kinds
    assert report.no_target is not None
    assert report.no_target["num"] == without
    assert report.no_target["n_acc"] == report.no_target["t_acc"] == 1
    assert "The tables leave such phrases out." in report.to_markdown()
    assert report.probes is not None
    assert report.probes.blank.overall["num"] == report.overall["num"]


def test_who_hits_the_siblings_picks_wrong(layouts: PhraseStore) -> None:
    right = evaluate(Knowing(layouts), layouts, "val", 0.5, probes=False, progress=False)
    wrong_one = Knowing(layouts, siblings=True)
    wrong = evaluate(wrong_one, layouts, "val", 0.5, probes=False, progress=False)
    assert right.picks["all"]["num"] == right.discriminative["num"] > 20
    assert {summary["hits"] for summary in right.picks.values()} == {1.0}
    assert {summary["hits"] for summary in wrong.picks.values()} == {0.0}
    assert 0.1 < right.picks["all"]["chance"] < 0.9
    assert "| kind: position | " in right.to_markdown().partition("phrases that choose")[2]


def test_the_thing_that_holds_most_of_the_mask_is_picked() -> None:
    def thing(columns: slice, group: int = 0) -> ObjectRecord:
        return ObjectRecord("cup", group, encode_rle(strip(columns)))

    def strip(columns: slice) -> NDArray[np.bool_]:
        mask = np.zeros((4, 12), dtype=bool)
        mask[:, columns] = True
        return mask

    def phrase(*matched: int) -> PhraseRecord:
        rle = encode_rle(strip(slice(0, 1)))
        return PhraseRecord("cup", "size", "cup", rle, True, None, None, 0, matched=matched)

    objects = [thing(slice(0, 3)), thing(slice(3, 6)), thing(slice(6, 12), group=1)]
    mostly_second = strip(
        slice(2, 12)
    )  # most of it on a thing of another class, which is no choice
    for matched, hit in ((0, False), (1, True)):
        found = pick_of(phrase(matched), mostly_second, objects)
        assert found == (hit, 0.5)
    assert pick_of(phrase(1), strip(slice(6, 12)), objects) == (False, 0.5)
    assert pick_of(phrase(0, 1), mostly_second, objects) is None  # it means all of them
    assert pick_of(phrase(), mostly_second, objects) is None  # it means none
    assert pick_of(phrase(0), mostly_second, None) is None
    assert pick_summaries([]) == {}


def test_drawn_layouts_show_every_kind_and_repeat() -> None:
    first, second = one_of_each_kind(0), one_of_each_kind(0)
    assert [phrase.kind for _, phrase in first] == [*KINDS, NO_TARGET]
    for (scene, phrase), (again, same) in zip(first, second, strict=True):
        assert phrase == same
        assert (scene.image == again.image).all()
        assert decode_rle(phrase.rle).any() == (phrase.kind != NO_TARGET)
    assert [p for _, p in one_of_each_kind(1)] != [p for _, p in first]


def test_the_command_scores_layouts_beside(
    random_checkpoint: Path,
    tiny_store: Path,
    layouts: PhraseStore,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "scores.json"
    command = ["evaluate", "--checkpoint", str(random_checkpoint), "--json", str(out)]
    beside = ["--layouts", str(layouts.path)]
    assert main([*command, *beside]) == 2
    assert "--layouts stands beside --data" in capsys.readouterr().err
    assert main([*command, "--data", str(tiny_store), *beside, "--sweep"]) == 2
    assert "--sweep does not go with --layouts" in capsys.readouterr().err
    assert main([*command, "--data", str(tiny_store), *beside]) == 0
    told = capsys.readouterr().out
    scores = json.loads(out.read_text("utf-8"))
    photos, _, section = told.partition("**Layouts**")
    assert photos == EvaluationReport.from_dict(scores).to_markdown() + "\n"
    assert section.endswith(EvaluationReport.from_dict(scores["layouts"]).to_markdown())
    assert "phrases have no target" in section
    assert scores["layouts"]["data"] == {"maker": "test"}
    assert set(scores["layouts"]["picks"]) > {"all", "position"}
