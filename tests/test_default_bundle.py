"""The bundle that the repository ships: its limits, and that what is written about it is so."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from model.bundle import GRAPH_FILES, Bundle
from model.probe import TOLERANCES, draw_images
from training.__main__ import main
from training.onnx_graphs import OnnxGraphs

# What evaluation repeats: other machines order floating-point sums otherwise.
TOLERANCE = 0.002


@pytest.fixture(scope="module")
def bundle(default_bundle: Path) -> Bundle:
    return Bundle.load(default_bundle)


def test_it_fits_into_the_limits(bundle: Bundle) -> None:
    assert sum(path.stat().st_size for path in bundle.path.iterdir()) <= 40_000_000
    weights = 0
    for name in GRAPH_FILES:
        graph = onnx.load(str(bundle.file(name))).graph
        weights += sum(math.prod(tensor.dims) for tensor in graph.initializer)
    assert 1_000_000 < weights <= 12_000_000


def test_it_reaches_what_it_was_trained_for(bundle: Bundle) -> None:
    scores = bundle.config.scores
    assert scores["split"] == "val"
    assert scores["all"]["mean_iou"] >= 0.40
    assert scores["all"]["cum_iou"] >= 0.58
    assert scores["kinds"]["class"]["mean_iou"] >= 0.48


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
    scores, card = bundle.config.scores, (repo_root / "docs/model-card.md").read_text("utf-8")
    readme = (repo_root / "README.md").read_text("utf-8")
    rows = {
        "**all**": scores["all"],
        **{f"kind: {kind}": row for kind, row in scores["kinds"].items()},
        "discriminative": scores["discriminative"],
    }
    for name, row in rows.items():
        assert f"| {name} | {row['num']} | {row['mean_iou']:.3f} | {row['cum_iou']:.3f} |" in card
    probes = scores["probes"]
    for kind, row in scores["kinds"].items():
        only, blank = (probes[p]["kinds"][kind] for p in ("class_name_only", "blank"))
        told = f"{row['mean_iou']:.3f} | {only['mean_iou']:.3f} | {blank['mean_iou']:.3f} |"
        assert f"| kind: {kind} | {told}" in card
    assert f"| {probes['swap']['num']} | {probes['swap']['overlap']:.3f} |" in card
    for score in (scores["all"]["mean_iou"], scores["all"]["cum_iou"]):
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
