"""`lively_lite` as it is exported: to compare, and as one bundle for all files."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest

from model.bundle import Bundle
from model.segvlm import SegVLM
from tests.conftest import Make
from tests.training.exporting.small_exports import copies, real_inputs, write
from training import export
from training.export import Artifacts


@pytest.fixture
def model(lively_lite: SegVLM) -> SegVLM:
    return copy.deepcopy(lively_lite).train()


@pytest.fixture(scope="session")
def bundle(
    lively_lite: SegVLM, lively_graphs: Path, made_once: Callable[[str, Make], Path]
) -> Bundle:
    def make(directory: Path) -> None:
        out = directory / "bundle"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(export, "export_graphs", copies(lively_graphs))
            write(lively_lite, out, artifacts=Artifacts(), real_inputs=real_inputs(lively_lite))

    return Bundle.load(made_once("lively-bundle", make) / "bundle")


@pytest.fixture
def reuse(lively_graphs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports take the graphs of `lively_lite` instead of making them again."""
    monkeypatch.setattr(export, "export_graphs", copies(lively_graphs))
