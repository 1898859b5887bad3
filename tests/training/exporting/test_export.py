"""An exported bundle answers what the network answers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from model.bundle import REQUIRED_FILES, TORCHSCRIPT_FILES, WEIGHTS_FILE, Bundle
from model.checkpoint import load
from model.segvlm import SegVLM
from tests.training.exporting.small_exports import PHRASES, real_inputs, write
from training.export import ExportError
from training.onnx_graphs import OnnxGraphs
from training.parity import answer, split_requests

pytestmark = pytest.mark.long(40)


def test_the_bundle_says_what_it_is(bundle: Bundle, model: SegVLM) -> None:
    config = bundle.config
    assert (config.name, config.version, config.threshold) == ("test-model", "1", 0.35)
    assert (config.preset, config.image_size, config.word_length) == ("segvlm-lite", 64, 17)
    assert (config.mean, config.std) == (model.config.mean, model.config.std)
    assert (config.training, config.scores) == ({"data": "none"}, {"miou": 0.5})
    assert set(config.files) == {*REQUIRED_FILES, *TORCHSCRIPT_FILES, WEIGHTS_FILE}
    assert config.precisions == {}
    assert config.parity["onnxruntime"] == onnxruntime.__version__
    for artifact in (config.parity, config.parity["torchscript"], config.parity["safetensors"]):
        for kind, pairs in (("random", 1 + 2 + 6), ("real", 5 + 6)):
            measured = artifact[kind]
            assert measured["pairs"] == pairs
            assert measured["logits"] <= 1e-3
            assert measured["pad_mask"] == 0
            assert measured["mask_iou"] >= 0.999
        assert artifact["probe"] <= 1e-3
    assert config.parity["random"]["logits"] > 0
    assert config.parity["safetensors"]["random"]["logits"] == 0


def test_the_probe_is_answered_by_the_network(bundle: Bundle, model: SegVLM) -> None:
    probe = bundle.probe()
    eager = copy.deepcopy(model).eval()
    with torch.no_grad():
        logits = eager(torch.from_numpy(probe.images), torch.from_numpy(probe.tokens)).numpy()
    assert np.array_equal(probe.logits, logits)


def test_the_bundle_answers_like_the_model_from_its_own_tokenizer(
    bundle: Bundle, model: SegVLM
) -> None:
    images, _ = real_inputs(model)
    tokens = bundle.tokenizer().encode(PHRASES, 17).tokens
    eager = copy.deepcopy(model).eval()
    with torch.no_grad():
        expected = eager(torch.from_numpy(images), torch.from_numpy(tokens)).numpy()
    requests = list(split_requests(images, tokens))
    graphs = OnnxGraphs(bundle.graphs(), threads=1)
    answered = np.concatenate([answer(graphs, request)["logits"] for request in requests[:-1]])
    assert np.abs(answered - expected).max() <= 1e-3 * np.abs(expected).max()


def test_the_checkpoint_is_the_network(bundle: Bundle, model: SegVLM) -> None:
    loaded = load(bundle.file(WEIGHTS_FILE))
    assert loaded.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


@pytest.mark.usefixtures("reuse")
def test_an_existing_bundle_gives_way_only_when_told(model: SegVLM, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    write(model, out)
    assert model.training, "exporting leaves it as it was"
    with pytest.raises(ExportError, match="exists"):
        write(model, out, version="2")
    assert Bundle.load(out).config.version == "1"
    write(model, out, version="2", overwrite=True)
    assert Bundle.load(out).config.version == "2"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 13])
def test_requests_cover_every_pair_once_and_mix(count: int) -> None:
    images = np.arange(count)
    *batches, mixed = split_requests(images, images + 100)

    def pairs(indices: Sequence[int], texts: Sequence[int]) -> list[tuple[int, int]]:
        return list(zip(indices, texts, strict=True))

    met = [
        (int(request.images[i]), int(request.tokens[j]))
        for request in batches
        for i, j in pairs(request.image_of, request.text_of)
    ]
    assert met == [(i, i + 100) for i in range(count)]
    assert len(batches[0].images) == 1
    assert len(pairs(mixed.image_of, mixed.text_of)) == min(count, 2) * min(count, 3)
