"""What all tests share: where things are, and one network with its ONNX graphs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

if TYPE_CHECKING:
    from model.segvlm import SegVLM

_REPO_ROOT = Path(__file__).resolve().parents[1]

Make = Callable[[Path], None]
"""Fills an empty directory."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that are marked as long come first, the longest before the others."""

    def seconds(item: pytest.Item) -> float:
        marker = item.get_closest_marker("long")
        return float(marker.args[0]) if marker else 0.0

    items.sort(key=seconds, reverse=True)  # stable: a file's tests keep their order


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
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Make], Path]:
    """Of a name and a maker, the directory that it filled; to be read only.

    Where several processes run the tests, the first that asks makes it for all of them.
    """
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def directory(name: str, make: Make) -> Path:
        path, partial = root / f"once-{name}", root / f"once-{name}.partial"
        with FileLock(root / f"once-{name}.lock"):
            if not path.is_dir():
                shutil.rmtree(partial, ignore_errors=True)  # of a maker that failed
                partial.mkdir()
                make(partial)
                partial.rename(path)
        return path

    return directory


@pytest.fixture(scope="session")
def lively_graphs(lively_lite: SegVLM, made_once: Callable[[str, Make], Path]) -> Path:
    """A directory with the ONNX graphs of `lively_lite`; making them takes half a minute."""
    from training.exporting.onnx_files import export_graphs

    return made_once("lively-graphs", lambda path: export_graphs(lively_lite, path))
