"""Outcomes of phrases: they merge exactly, are counted once, and make every part of a report."""

from __future__ import annotations

import csv
import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.checkpoint import load
from model.tokenizer import clip_tokenizer
from training.__main__ import main
from training.data.lmdb_store import PhraseStore
from training.data.phrasecut_subsets import SUBSETS
from training.evaluate import evaluate, score_images, sweep
from training.outcomes import (
    CSV_COLUMNS,
    Overlap,
    PhraseOutcome,
    ProbeOutcome,
    SwapOutcome,
    report_of,
    write_csv,
)
from training.predictors import TorchPredictor


def random_outcomes(count: int, probes: bool = True) -> list[PhraseOutcome]:
    rng = np.random.default_rng(0)

    def overlap() -> Overlap:
        union = int(rng.integers(1, 5000))
        return Overlap(int(rng.integers(0, union + 1)), union)

    def probe() -> ProbeOutcome:
        truth = overlap() if rng.random() < 0.5 else None
        swap = SwapOutcome(overlap(), int(rng.integers(0, 3)), truth)
        return ProbeOutcome(overlap(), overlap(), swap if rng.random() < 0.7 else None)

    def outcome(number: int) -> PhraseOutcome:
        size = ("s_small", "s_mid", "s_large")[int(rng.integers(0, 3))]
        return PhraseOutcome(
            image_id=f"image-{number // 3}",
            index=number % 3,
            task_id=f"{number // 3}__{number % 3}",
            phrase=f"phrase {number}",
            kind=("name", "verbose")[int(rng.integers(0, 2))],
            source=f"source-{int(rng.integers(0, 2))}",
            size=size,
            discriminative=bool(rng.integers(0, 2)),
            subsets=(size, "d_cocotv"),
            predicted=int(rng.integers(0, 2)),
            target=5,
            overlap=overlap(),
            probes=probe() if probes else None,
        )

    return [outcome(number) for number in range(count)]


@pytest.mark.parametrize("probes", [True, False])
def test_a_report_does_not_depend_on_the_order(probes: bool) -> None:
    outcomes = random_outcomes(500, probes)
    whole = report_of(outcomes, "val", 0.35)
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(outcomes))
        assert report_of([outcomes[place] for place in order], "val", 0.35) == whole
    assert (whole.probes is not None) == probes
    assert whole.num_images == 167
    # The sums that must not depend on the order are no accident of few digits.
    backwards = sum(each.overlap.iou for each in reversed(outcomes)) / 500
    assert whole.mean_iou == pytest.approx(backwards, abs=1e-12)


def test_outcomes_pickle_to_what_they_were() -> None:
    outcomes = random_outcomes(20)
    assert pickle.loads(pickle.dumps(outcomes)) == outcomes


def test_a_padded_duplicate_is_refused() -> None:
    outcomes = random_outcomes(6)
    with pytest.raises(ValueError, match=r"phrase 0 of image 'image-0' was scored twice"):
        report_of([*outcomes, outcomes[0]], "val", 0.35)
    with pytest.raises(ValueError, match="no phrase was scored"):
        report_of([], "val", 0.35)
    with pytest.raises(ValueError, match="some outcomes have probes"):
        report_of([*outcomes[:3], *random_outcomes(6, probes=False)[3:]], "val", 0.35)


def test_phrasecut_subsets_are_all_there_in_their_order() -> None:
    outcomes = random_outcomes(60)
    report = report_of(outcomes, "test", 0.35)
    assert tuple(report.subsets) == SUBSETS
    assert report.subsets["all"] == report.overall
    assert report.subsets["d_cocotv"] == report.overall
    assert report.subsets["d_notcocotv"]["num"] == 0
    for size, scores in report.sizes.items():
        assert report.subsets[size] == scores
    page = report.to_markdown()
    assert "| d_notcocotv | 0 |" in page
    assert "the rank of the best known attribute" in page
    assert page.count(f"| {outcomes[0].size} | ") == 1  # the sizes are not told twice


def test_other_subsets_stand_under_their_own_names() -> None:
    outcomes = [
        replace(each, subsets=("hard",) * (n % 2)) for n, each in enumerate(random_outcomes(9))
    ]
    report = report_of(outcomes, "testA", 0.35)
    assert {name: scores["num"] for name, scores in report.subsets.items()} == {"hard": 4}
    assert "| subset: hard | 4 |" in report.to_markdown()
    plain = [replace(each, subsets=()) for each in outcomes]
    assert report_of(plain, "testA", 0.35).subsets == {}


def test_phrases_without_a_target() -> None:
    """Four of them, three answered with an empty mask; five others, four answered with some."""
    base = random_outcomes(9, probes=False)
    outcomes = [
        replace(each, target=0, predicted=pixels, overlap=Overlap(0, pixels))
        for each, pixels in zip(base[:4], (0, 0, 0, 7), strict=True)
    ]
    outcomes += [
        replace(each, target=8, predicted=pixels, overlap=Overlap(pixels, 8))
        for each, pixels in zip(base[4:], (0, 4, 4, 8, 8), strict=True)
    ]
    report = report_of(outcomes, "val", 0.35)
    assert report.no_target is not None
    counted = {
        key: report.no_target[key] for key in ("num", "n_acc", "num_target", "t_acc", "giou")
    }
    assert counted == {
        "num": 4,
        "n_acc": 3 / 4,
        "num_target": 5,
        "t_acc": 4 / 5,
        "giou": pytest.approx((3 + 0 + 0 + 0.5 + 0.5 + 1 + 1) / 9),
    }
    assert report.mean_iou == pytest.approx((0 + 0.5 + 0.5 + 1 + 1) / 9)  # PhraseCut's rule
    others = report_of([replace(each, subsets=()) for each in outcomes], "val", 0.35)
    assert others.mean_iou == pytest.approx((0 + 0.5 + 0.5 + 1 + 1) / 5)
    assert others.no_target == report.no_target
    assert (others.num_phrases, others.overall["num"]) == (9, 5)
    assert report.to_dict()["no_target"] == report.no_target
    page = report.to_markdown()
    assert "4 phrases have no target: 75.0% of them" in page
    assert "80.0% of the 5 others" in page
    only = report_of(outcomes[:4], "val", 0.35).no_target
    assert only is not None
    assert only["t_acc"] is None
    assert report_of(outcomes[4:], "val", 0.35).no_target is None


def test_the_table_of_phrases_reads_back(tmp_path: Path) -> None:
    outcomes = random_outcomes(40)
    outcomes[3] = replace(outcomes[3], phrase='a "quoted", two-line\nphrase', predicted=0)
    write_csv(outcomes, tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == CSV_COLUMNS
    for row, each in zip(rows, outcomes, strict=True):
        assert (row["image_id"], row["task_id"]) == (each.image_id, each.task_id)
        assert (row["phrase"], row["kind"]) == (each.phrase, each.kind)
        counts = (int(row["intersection"]), int(row["union"]))
        assert counts == (each.overlap.intersection, each.overlap.union)
        assert float(row["iou"]) == each.overlap.iou
        assert row["empty"] == ("1" if each.predicted == 0 else "0")


def test_shards_of_a_network_merge_to_the_whole(random_checkpoint: Path, tiny_store: Path) -> None:
    store = PhraseStore(tiny_store)
    predictor = TorchPredictor(load(random_checkpoint), clip_tokenizer())
    ids = store.image_ids("val")
    assert len(ids) == 3
    for probes in (True, False):
        whole = evaluate(predictor, store, "val", 0.5, probes=probes, progress=False)
        shards = [
            score_images(
                predictor, store, "val", 0.5, probes=probes, image_ids=part, progress=False
            )
            for part in (ids[0::4], ids[1::4], ids[2::4], ids[3::4])
        ]
        assert [bool(shard) for shard in shards] == [True, True, True, False]
        merged = report_of([each for shard in shards for each in shard], "val", 0.5)
        assert merged == whole
        assert whole.num_phrases == sum(store.phrase_count(image_id) for image_id in ids)


def test_the_command_writes_what_it_is_asked_for(
    random_checkpoint: Path, tiny_store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    curve, report, rows, page = (tmp_path / name for name in ("s.json", "r.json", "r.csv", "r.md"))
    command = ["evaluate", "--checkpoint", str(random_checkpoint), "--data", str(tiny_store)]
    capsys.readouterr()
    assert main([*command, "--sweep", "--json", str(curve)]) == 0
    swept = json.loads(curve.read_text("utf-8"))
    assert f"best: {swept['best_threshold']:.2f}" in capsys.readouterr().out

    files = ["--json", str(report), "--csv", str(rows), "--markdown", str(page)]
    assert main([*command, *files, "--no-probes"]) == 0
    scores = json.loads(report.read_text("utf-8"))
    assert scores["threshold"] == 0.35  # the paper's baseline, where nothing else is said
    assert scores["all"] == swept["sweep"]["0.35"]
    assert scores["probes"] is None
    assert scores["data"] == swept["data"]
    assert len(rows.read_text("utf-8").splitlines()) == 1 + scores["num_phrases"]
    told = capsys.readouterr().out
    assert told == page.read_text("utf-8")
    assert "| **all** |" in told

    assert main(["evaluate", "--checkpoint", str(random_checkpoint), "--fps", *files[:2]]) == 0
    assert json.loads(report.read_text("utf-8"))["frame_rate"]["image_size"] == 64
    assert "Forward pass alone at 64 x 64" in capsys.readouterr().out
    assert main([*command, "--threshold", "0"]) == 2
    assert "between 0 and 1, not be 0.0" in capsys.readouterr().err


@pytest.mark.parametrize("split", ["test", "testA", "testB", "TEST"])
def test_no_threshold_is_chosen_on_a_test_split(split: str, tiny_store: Path) -> None:
    class Unasked:
        def predict(self, image: Any, phrases: Any) -> Any:
            raise AssertionError

    with pytest.raises(ValueError, match="must not be chosen on"):
        sweep(Unasked(), PhraseStore(tiny_store), split)
