"""The bundle that the repository ships: its limits, and that what is written about it is so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.bundle import Bundle
from model.probe import TOLERANCES, draw_images
from training.__main__ import main
from training.model_card import bytes_of, card_parts, renewed, weights_of
from training.onnx_graphs import OnnxGraphs

# What evaluation repeats: other machines order floating-point sums otherwise.
TOLERANCE = 0.002


@pytest.fixture(scope="module")
def bundle(default_bundle: Path) -> Bundle:
    return Bundle.load(default_bundle)


def test_it_fits_into_the_limits(bundle: Bundle) -> None:
    assert bytes_of(bundle) <= 40_000_000
    assert 1_000_000 < weights_of(bundle) <= 12_000_000


def test_it_reaches_what_it_was_trained_for(bundle: Bundle) -> None:
    scores = bundle.config.scores
    assert scores["split"] == "val"
    assert scores["all"]["mean_iou"] >= 0.45
    assert scores["all"]["cum_iou"] >= 0.58
    assert scores["kinds"]["class"]["mean_iou"] >= 0.52


def test_it_listens_to_the_words(bundle: Bundle) -> None:
    """To those of place, to none, and more often than not to those of what is not there."""
    scores = bundle.config.scores
    probes, absent = scores["probes"], scores["absent"]
    whole, name = (probes["discriminative"][text] for text in ("whole", "class_name_only"))
    assert whole["all"]["mean_iou"] - name["all"]["mean_iou"] >= 0.10
    for kind in ("position", "size", "relation"):
        assert whole["kinds"][kind]["mean_iou"] - name["kinds"][kind]["mean_iou"] >= 0.05
    assert probes["swap"]["overlap"] <= 0.35
    assert probes["swap"]["hits_share"] > 0.5
    assert probes["blank"]["all"]["mean_iou"] <= 0.01
    assert absent["n_acc"] > 0.7
    assert absent["t_acc"] > 0.7
    assert absent["auroc"] > 0.7


def test_it_tells_how_it_was_made_and_how_equal_its_graphs_are(bundle: Bundle) -> None:
    assert {"statement", "deviations", "config"} <= set(bundle.config.training)
    for measured in (bundle.config.parity["random"], bundle.config.parity["real"]):
        assert measured["logits"] <= 1e-3
        assert measured["mask_iou"] >= 0.999


def test_its_graphs_answer_its_probe(bundle: Bundle) -> None:
    graphs, probe = OnnxGraphs(bundle.graphs()), bundle.probe()
    answer = graphs.decode(graphs.encode_image(probe.images), graphs.encode_text(probe.tokens))
    assert probe.difference(answer) <= TOLERANCES["fp32"] / 10
    assert np.array_equal(probe.images, draw_images(bundle.config.image_size))


def test_the_documents_quote_its_scores(bundle: Bundle, repo_root: Path) -> None:
    card = (repo_root / "docs/model-card.md").read_text("utf-8")
    # Where it differs, `python -m training card` renews it (docs/training.md).
    assert renewed(card, card_parts(bundle)) == card
    readme = (repo_root / "README.md").read_text("utf-8")
    overall = bundle.config.scores["all"]
    for score in (overall["mean_iou"], overall["cum_iou"]):
        assert f"| {score:.3f} |" in readme


@pytest.mark.slow
def test_evaluation_repeats_its_scores(bundle: Bundle, shared_dir: Path, tmp_path: Path) -> None:
    annotations = shared_dir / "data" / "photos" / "annotations.json"
    store, again = tmp_path / "photos.lmdb", tmp_path / "scores.json"
    assert (
        main(["prepare", "instances", "--annotations", str(annotations), "--out", str(store)]) == 0
    )
    command = ["evaluate", "--bundle", str(bundle.path), "--data", str(store)]
    assert main([*command, "--json", str(again)]) == 0
    measured: dict[str, Any] = json.loads(again.read_text("utf-8"))
    scores = bundle.config.scores
    assert measured["data"] == scores["data"]
    assert measured["all"]["num"] == scores["all"]["num"]
    for name in ("mean_iou", "cum_iou"):
        assert measured["all"][name] == pytest.approx(scores["all"][name], abs=TOLERANCE)
    for kind, row in scores["kinds"].items():
        repeated = measured["kinds"][kind]["mean_iou"]
        assert repeated == pytest.approx(row["mean_iou"], abs=2 * TOLERANCE)
