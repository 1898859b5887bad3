"""Where things are: the repository, the shared material beside it, the committed bundle."""

from __future__ import annotations

from pathlib import Path

import pytest

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
