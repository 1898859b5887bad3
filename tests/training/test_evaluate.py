"""Evaluation with predictors whose every answer is known, and with the two real ones."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from model.config import preset_config
from model.preprocess import letterbox_image, restore_probability, sigmoid
from model.segvlm import SegVLM, build_segvlm
from model.tokenizer import Tokenizer, clip_tokenizer
from training.data.lmdb_store import (
    ImageRecord,
    PhraseRecord,
    PhraseStore,
    PhraseStoreWriter,
    decode_rle,
    encode_rle,
)
from training.evaluate import best_threshold, evaluate, sweep
from training.predictors import Predictor, TorchPredictor

Mask = NDArray[np.bool_]
Answer = Callable[[str, Mask | None, tuple[int, int]], NDArray[np.floating]]

SIZES = {"first": (20, 30), "second": (25, 16)}  # height, width


def boxed(shape: tuple[int, int], top: int, left: int, bottom: int, right: int) -> Mask:
    mask = np.zeros(shape, dtype=np.bool_)
    mask[top:bottom, left:right] = True
    return mask


def phrases_of(shape: tuple[int, int]) -> list[PhraseRecord]:
    height, width = shape
    left = boxed(shape, 2, 1, height // 2, width // 3)
    right = boxed(shape, 2, width // 2, height - 1, width)
    tiny = boxed(shape, 0, 0, 1, 1)

    def record(
        phrase: str, kind: str, target: Mask, swapped: str | None = None, truth: Mask | None = None
    ) -> PhraseRecord:
        return PhraseRecord(
            phrase=phrase,
            kind=kind,
            class_name="dog",
            rle=encode_rle(target),
            discriminative=kind == "position",
            swapped=swapped,
            swapped_rle=None if truth is None else encode_rle(truth),
            group=0,
        )

    return [
        record("dog", "class", left | right),
        record("left dog", "position", left, "right dog", right),
        record("right dog", "position", right, "left dog", left),
        record("leftmost speck", "size", tiny, "rightmost speck"),
    ]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> PhraseStore:
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("store") / "phrases.lmdb"
    rows, batch = [], []
    for index, (image_id, shape) in enumerate(SIZES.items()):
        stream = BytesIO()
        # The red channel tells the fake predictor which photo it sees; JPEG keeps a flat one.
        photo = np.full((*shape, 3), 10 + 100 * index, dtype=np.uint8)
        Image.fromarray(photo).save(stream, "JPEG", quality=95)
        phrases = phrases_of(shape)
        rows.append(ImageRecord(image_id, "val", f"source-{index}", *shape, len(phrases)))
        batch.append((rows[-1], stream.getvalue(), phrases))
    rows.append(ImageRecord("bare", "train", "source-0", 8, 8, 0))
    stream = BytesIO()
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(stream, "JPEG")
    batch.append((rows[-1], stream.getvalue(), []))
    with PhraseStoreWriter(path, {"made": "by a test"}) as writer:
        writer.add(batch, {})
        writer.finish([row.image_id for row in rows], {})
    return PhraseStore(path)


class FakePredictor:
    """Answers from the truth; counts how often each photo is encoded."""

    def __init__(self, store: PhraseStore, answer: Answer) -> None:
        self._answer = answer
        self._truths: dict[tuple[int, ...], dict[str, Mask]] = {}
        self.calls: list[tuple[tuple[int, ...], list[str]]] = []
        for image_id, shape in SIZES.items():
            phrases = store.phrases(image_id)
            self._truths[shape] = {each.phrase: decode_rle(each.rle) for each in phrases}

    def predict(
        self, image: NDArray[np.uint8], phrases: Sequence[str]
    ) -> list[NDArray[np.float32]]:
        assert image.dtype == np.uint8
        shape = image.shape[:2]
        self.calls.append((shape, list(phrases)))
        truths = self._truths[shape]
        return [
            self._answer(phrase, truths.get(phrase), shape).astype(np.float32) for phrase in phrases
        ]


def oracle(phrase: str, truth: Mask | None, shape: tuple[int, int]) -> NDArray[np.floating]:
    return np.zeros(shape) if truth is None else 0.9 * truth


def inverse(phrase: str, truth: Mask | None, shape: tuple[int, int]) -> NDArray[np.floating]:
    return np.ones(shape) if truth is None else 1.0 - truth


def deaf_to_sides(phrase: str, truth: Mask | None, shape: tuple[int, int]) -> NDArray[np.floating]:
    return boxed(shape, 0, 0, shape[0], shape[1] // 2).astype(np.float32)


def nothing(phrase: str, truth: Mask | None, shape: tuple[int, int]) -> NDArray[np.floating]:
    return np.zeros(shape)


def test_an_oracle_scores_one(store: PhraseStore) -> None:
    predictor = FakePredictor(store, oracle)
    report = evaluate(predictor, store, "val", 0.5, progress=False)
    assert (report.num_images, report.num_phrases) == (2, 8)
    assert report.mean_iou == report.cum_iou == 1
    assert set(report.overall["precision"].values()) == {1.0}
    assert {kind: each["num"] for kind, each in report.kinds.items()} == {
        "class": 2,
        "position": 4,
        "size": 2,
    }
    assert {name: each["num"] for name, each in report.sources.items()} == {
        "source-0": 4,
        "source-1": 4,
    }
    assert sum(each["num"] for each in report.sizes.values()) == 8
    assert report.sizes["s_small"]["num"] == 2
    assert report.discriminative["num"] == 4
    assert report.empty_share == 0
    # Every photo once, every text once: the four phrases, the swapped speck and the blank text
    # (the class name is one of the phrases, and so are the other swapped forms).
    assert [shape for shape, _ in predictor.calls] == [SIZES["first"], SIZES["second"]]
    assert sorted(predictor.calls[0][1]) == sorted(
        ["dog", "left dog", "right dog", "leftmost speck", "rightmost speck", ""]
    )


def test_probes_of_an_oracle(store: PhraseStore) -> None:
    probes = evaluate(FakePredictor(store, oracle), store, "val", 0.5, progress=False).probes
    assert probes is not None
    # The class name's mask is both dogs: right for class phrases, partly for position phrases.
    class_only = probes.class_name_only
    assert class_only.kinds["class"]["mean_iou"] == 1
    shares = []
    for shape in SIZES.values():
        dog, left, right, speck = (decode_rle(each.rle) for each in phrases_of(shape))
        shares += [left.sum() / dog.sum(), right.sum() / dog.sum()]
        assert not (speck & dog).any()
    assert class_only.kinds["position"]["mean_iou"] == pytest.approx(np.mean(shares))
    assert class_only.kinds["size"]["mean_iou"] == 0
    assert class_only.overall["num"] == 8
    assert probes.blank.overall["num"] == 8
    assert probes.blank.overall["mean_iou"] == 0
    # The two sides' masks do not overlap; the swapped speck has no mask, which must not count as
    # a perfect swap.
    assert probes.swap["num"] == 6
    assert probes.swap["num_overlap"] == 4
    assert probes.swap["overlap"] == 0
    assert probes.swap["one_empty_share"] == pytest.approx(2 / 6)
    assert probes.swap["both_empty_share"] == 0
    assert probes.swap["num_swapped"] == 4
    assert probes.swap["original_mean_iou"] == probes.swap["swapped_mean_iou"] == 1
    assert probes.swap_kinds["size"]["overlap"] is None
    assert probes.swap_kinds["size"]["swapped_mean_iou"] is None
    assert sorted(probes.swap_kinds) == ["position", "size"]


def test_the_inverse_scores_zero(store: PhraseStore) -> None:
    report = evaluate(FakePredictor(store, inverse), store, "val", 0.5, progress=False)
    assert report.mean_iou == report.cum_iou == 0
    assert set(report.overall["precision"].values()) == {0.0}


def test_who_ignores_the_sides_overlaps_fully(store: PhraseStore) -> None:
    report = evaluate(FakePredictor(store, deaf_to_sides), store, "val", 0.5, progress=False)
    assert report.probes is not None
    swap = report.probes.swap
    assert swap["overlap"] == 1
    assert swap["num_overlap"] == 6
    assert swap["one_empty_share"] == swap["both_empty_share"] == 0
    assert swap["original_mean_iou"] == swap["swapped_mean_iou"] is not None
    # Whatever the text, the same mask: the probes equal the score.
    for probe in (report.probes.class_name_only, report.probes.blank):
        assert probe.overall == report.overall
        assert probe.kinds == report.kinds


def test_empty_masks_are_counted(store: PhraseStore) -> None:
    report = evaluate(FakePredictor(store, nothing), store, "val", 0.5, progress=False)
    assert report.empty_share == 1
    assert report.probes is not None
    assert report.probes.swap["both_empty_share"] == 1
    assert report.probes.swap["overlap"] is None


def test_without_probes_only_the_phrases_are_asked(store: PhraseStore) -> None:
    predictor = FakePredictor(store, oracle)
    report = evaluate(predictor, store, "val", 0.5, probes=False, progress=False)
    assert report.probes is None
    assert report.to_dict()["probes"] is None
    assert all(
        texts == ["dog", "left dog", "right dog", "leftmost speck"] for _, texts in predictor.calls
    )


def test_the_threshold_decides(store: PhraseStore) -> None:
    predictor = FakePredictor(store, oracle)  # 0.9 on the target
    assert evaluate(predictor, store, "val", 0.89, progress=False).mean_iou == 1
    at = float(np.float32(0.9))  # above it is inside, as in the service; at it is not
    assert evaluate(predictor, store, "val", at, progress=False).mean_iou == 0
    assert evaluate(predictor, store, "val", 0.95, progress=False).mean_iou == 0


def test_some_images(store: PhraseStore) -> None:
    predictor = FakePredictor(store, oracle)
    report = evaluate(predictor, store, "val", 0.5, image_ids=["second"], progress=False)
    assert (report.num_images, report.num_phrases) == (1, 4)
    with pytest.raises(ValueError, match="bare"):
        evaluate(predictor, store, "val", 0.5, image_ids=["bare"], progress=False)


def test_report_as_json_and_markdown(store: PhraseStore) -> None:
    report = evaluate(FakePredictor(store, oracle), store, "val", 0.5, progress=False)
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["all"] == report.overall
    assert data["probes"]["class_name_only"]["all"]["num"] == 8
    assert data["probes"]["blank"]["kinds"]["size"]["mean_iou"] == 0
    assert data["probes"]["swap"]["overlap"] == 0
    assert data["probes"]["swap"]["kinds"]["size"]["num"] == 2
    page = report.to_markdown()
    assert "8 phrases on 2 images" in page
    assert "| **all** | 8 | 1.000 | 1.000 | 1.000 | 1.000 | 1.000 |" in page
    assert "| kind: size | 1.000 | 0.000 | 0.000 |" in page
    assert "| kind: size | 2 | none | 100.0% | 0.0% | none | none |" in page
    for table in page.split("\n\n"):
        rows = [line for line in table.splitlines() if line.startswith("|")]
        assert len({row.count("|") for row in rows}) <= 1


def graded(phrase: str, truth: Mask | None, shape: tuple[int, int]) -> NDArray[np.floating]:
    """0.7 on the target, 0.45 on everything else."""
    return np.where(np.zeros(shape, dtype=np.bool_) if truth is None else truth, 0.7, 0.45)


def test_sweep_equals_separate_evaluations(store: PhraseStore) -> None:
    predictor = FakePredictor(store, graded)
    thresholds = (0.4, 0.5, 0.6, 0.8)
    scores = sweep(predictor, store, "val", thresholds, progress=False)
    assert len(predictor.calls) == len(SIZES)
    for threshold in thresholds:
        report = evaluate(predictor, store, "val", threshold, probes=False, progress=False)
        assert scores[threshold] == report.overall
    assert scores[0.4]["mean_iou"] < scores[0.5]["mean_iou"] == scores[0.6]["mean_iou"] == 1
    assert best_threshold(scores) == 0.5


def test_refusals_name_the_remedy(store: PhraseStore) -> None:
    predictor = FakePredictor(store, oracle)
    with pytest.raises(ValueError, match="no phrases in split 'train'"):
        evaluate(predictor, store, "train", 0.5, progress=False)
    with pytest.raises(ValueError, match="between 0 and 1"):
        evaluate(predictor, store, "val", 1.0, progress=False)
    with pytest.raises(ValueError, match="sweep a validation split"):
        sweep(predictor, store, "test", progress=False)
    with pytest.raises(ValueError, match="at least one"):
        best_threshold({})


@pytest.fixture(scope="module")
def lite() -> tuple[SegVLM, Tokenizer]:
    """Random weights, with the last layer scaled so that the masks are neither empty nor full."""
    torch.manual_seed(0)
    model, tokenizer = build_segvlm(preset_config("segvlm-lite", image_size=64)), clip_tokenizer()
    tokens = torch.from_numpy(tokenizer.encode(["a dog"], model.config.word_length).tokens)
    last = model.projector.dynamic.kernel
    with torch.no_grad():
        logits = model.eval()(torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8), tokens)
        for parameter in last.parameters():
            parameter.div_(logits.std())
        last.bias[-1] -= logits.mean() / logits.std()
    return model, tokenizer


def test_torch_predictor_equals_the_stages_by_hand(lite: tuple[SegVLM, Tokenizer]) -> None:
    model, tokenizer = lite
    image = np.random.default_rng(1).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    phrases = ["the dog on the left", "", "a red car"]
    model.train()
    predictor: Predictor = TorchPredictor(model, tokenizer, batch_size=2)
    maps = predictor.predict(image, phrases)
    assert not model.training
    assert min(each.std() for each in maps) > 0.02
    assert np.abs(maps[0] - maps[2]).max() > 1e-3
    square, geometry = letterbox_image(image, 64)
    for phrase, each in zip(phrases, maps, strict=True):
        tokens = torch.from_numpy(tokenizer.encode([phrase], model.config.word_length).tokens)
        with torch.no_grad():
            logits = model(torch.from_numpy(square)[None], tokens)[0].numpy()
        assert each.shape == (37, 53)
        assert each.dtype == np.float32
        np.testing.assert_allclose(each, restore_probability(sigmoid(logits), geometry), atol=1e-5)
    assert predictor.predict(image, []) == []
    with pytest.raises(ValueError, match="batch_size"):
        TorchPredictor(model, tokenizer, batch_size=0)
    with pytest.raises(ValueError, match="autocast needs a CUDA device"):
        TorchPredictor(model, tokenizer, autocast=True)


@pytest.mark.gpu
def test_torch_predictor_on_a_gpu(lite: tuple[SegVLM, Tokenizer]) -> None:
    image = np.random.default_rng(3).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    phrases = ["the dog on the left", "a red car"]
    expected = TorchPredictor(*lite).predict(image, phrases)
    model = copy.deepcopy(lite[0]).cuda()
    for autocast, tolerance in ((False, 1e-2), (True, 5e-2)):
        predictor = TorchPredictor(model, lite[1], "cuda", autocast=autocast)
        np.testing.assert_allclose(predictor.predict(image, phrases), expected, atol=tolerance)


def test_torch_predictor_scores_a_store(lite: tuple[SegVLM, Tokenizer], store: PhraseStore) -> None:
    report = evaluate(TorchPredictor(*lite), store, "val", 0.5, progress=False)
    assert report.num_phrases == 8
    assert 0 <= report.mean_iou <= 1


def test_bundle_predictor_is_a_predictor(default_bundle: Path) -> None:
    from model.bundle import Bundle
    from training.predictors import BundlePredictor

    predictor: Predictor = BundlePredictor(Bundle.load(default_bundle), threads=1, batch_size=2)
    image = np.random.default_rng(2).integers(0, 256, (40, 61, 3), dtype=np.uint8)
    phrases = ["the dog", "a person", ""]
    maps = predictor.predict(image, phrases)
    assert [each.shape for each in maps] == [(40, 61)] * 3
    for phrase, each in zip(phrases, maps, strict=True):
        np.testing.assert_allclose(predictor.predict(image, [phrase])[0], each, atol=1e-5)
    assert predictor.predict(image, []) == []


def test_idle_threads_of_the_graphs_do_not_spin(default_bundle: Path) -> None:
    from model.bundle import Bundle
    from training.onnx_graphs import OnnxGraphs

    graphs = OnnxGraphs(Bundle.load(default_bundle).graphs(), threads=1)
    for session in (graphs._image, graphs._text, graphs._decoder):
        options = session.get_session_options()
        assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
        assert options.intra_op_num_threads == 1
