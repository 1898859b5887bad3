"""What all tests share: where things are, and one network with its ONNX graphs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from model.segvlm import SegVLM

_REPO_ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repo_root() -> Path:
    """The root of this checkout."""
    return _REPO_ROOT


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The material that several checkouts share (photos, reference outputs); never committed."""
    path = _REPO_ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip(f"{path} is not beside this checkout, so its photos and references are missing")
    return path


@pytest.fixture(scope="session")
def default_bundle() -> Path:
    """The bundle that the repository ships. Its absence is a broken checkout, not a skip."""
    path = _REPO_ROOT / "model" / "bundles" / "segvlm-lite"
    if not (path / "config.json").is_file():
        pytest.fail(f"{path} has no config.json: the default bundle belongs to the repository")
    return path


@pytest.fixture(scope="session")
def lively_lite() -> SegVLM:
    """`segvlm-lite` at 64 px with random weights, in evaluation mode. Not to be changed."""
    from model.config import preset_config
    from tests.lively import lively

    return lively(preset_config("segvlm-lite", image_size=64))


@pytest.fixture(scope="session")
def lively_graphs(lively_lite: SegVLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the ONNX graphs of `lively_lite`; making them takes half a minute."""
    from training.exporting.onnx_files import export_graphs

    directory = tmp_path_factory.mktemp("lively")
    export_graphs(lively_lite, directory)
    return directory
