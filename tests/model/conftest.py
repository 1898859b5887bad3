"""Property tests on shared machines: an example may be slow without being wrong. And a bundle."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from model.bundle import GRAPH_FILES, PROBE_FILE, TOKENIZER_FILE, Bundle, write_bundle
from model.tokenizer import clip_tokenizer
from tests.model.bundle_parts import CONFIG, make_probe

settings.register_profile("no-deadline", deadline=None, print_blob=True)
if settings.get_current_profile_name() == "default":  # `--hypothesis-profile` goes first
    settings.load_profile("no-deadline")


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    clip_tokenizer().save(path)
    return path


@pytest.fixture(scope="module")
def probe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probe") / "made.npz"
    make_probe().save(path)
    return path


@pytest.fixture
def sources(tmp_path: Path, tokenizer_file: Path, probe_file: Path) -> dict[str, Path]:
    """What an exporter has made: a real tokenizer and probe, and bytes in the place of graphs."""
    folder = tmp_path / "sources"
    folder.mkdir()
    made = {TOKENIZER_FILE: tokenizer_file, PROBE_FILE: probe_file}
    for name in GRAPH_FILES:
        made[name] = folder / f"any-{name}"
        made[name].write_bytes(name.encode() * 1000)
    return made


@pytest.fixture
def bundle(tmp_path: Path, sources: dict[str, Path]) -> Bundle:
    return write_bundle(tmp_path / "bundle", CONFIG, sources)
