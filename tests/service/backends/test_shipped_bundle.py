"""The bundle that the repository ships answers its own question on whatever can run its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model.bundle import TORCHSCRIPT_FILES, WEIGHTS_FILE, Bundle
from model.probe import TOLERANCES
from service.backends import load_model
from service.backends.base import LoadOptions


@pytest.mark.parametrize(
    ("backend", "precision"),
    [("onnx", "fp32"), ("onnx", "int8"), ("torch", "fp32"), ("torchscript", "fp32")],
)
def test_it_answers_its_own_question(backend: str, precision: Any, default_bundle: Path) -> None:
    bundle = Bundle.load(default_bundle)
    there = {
        "onnx": precision in ("fp32", *bundle.config.precisions),
        "torch": bundle.has(WEIGHTS_FILE),
        "torchscript": bundle.has(*TORCHSCRIPT_FILES),
    }
    if not there[backend]:
        pytest.skip(f"it has no files for {backend} in {precision}")
    model = load_model(
        backend, default_bundle, LoadOptions(device="cpu", precision=precision, threads=1)
    )
    probe, computes = model.probe, model.backend
    features = computes.encode_image(probe.images), computes.encode_text(probe.tokens)
    assert probe.difference(computes.decode(*features)()) <= TOLERANCES[computes.precision]
