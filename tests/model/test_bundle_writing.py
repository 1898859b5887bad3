"""Bundles are written whole or not at all, and only sound ones give way."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from model import bundle as bundle_module
from model.bundle import CONFIG_FILE, GRAPH_FILES, TOKENIZER_FILE, Bundle, BundleError, write_bundle
from tests.model.bundle_parts import CONFIG, contents


def test_a_missing_source_leaves_nothing(tmp_path: Path, sources: dict[str, Path]) -> None:
    sources[GRAPH_FILES[1]].unlink()
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(BundleError, match=r"cannot write text_encoder\.onnx"):
        write_bundle(tmp_path / "deep" / "bundle", CONFIG, sources)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_forgotten_source_leaves_nothing(tmp_path: Path, sources: dict[str, Path]) -> None:
    del sources[TOKENIZER_FILE]
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(BundleError, match=r"needs tokenizer\.json"):
        write_bundle(tmp_path / "bundle", CONFIG, sources)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes", 1j])
def test_a_description_that_is_no_json_leaves_nothing(
    tmp_path: Path, sources: dict[str, Path], value: object
) -> None:
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(BundleError, match="is not JSON"):
        write_bundle(tmp_path / "bundle", replace(CONFIG, scores={"mIoU": value}), sources)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path,
    sources: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    overwrite: bool,
) -> None:
    if overwrite:
        write_bundle(tmp_path / "bundle", CONFIG, sources)
    before = contents(tmp_path)
    copied = []

    def copy_until_full(source: Path, destination: Path) -> None:
        if len(copied) == 2:
            raise OSError(28, "No space left on device")
        copied.append(destination)
        destination.write_bytes(source.read_bytes())

    monkeypatch.setattr(bundle_module.shutil, "copyfile", copy_until_full)
    with pytest.raises(BundleError, match="No space left on device"):
        write_bundle(tmp_path / "bundle", replace(CONFIG, version="2"), sources, overwrite)
    assert len(copied) == 2
    assert contents(tmp_path) == before
    assert (tmp_path / "bundle").exists() == overwrite


def test_an_interruption_leaves_nothing(
    tmp_path: Path, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = sorted(os.listdir(tmp_path))
    monkeypatch.setattr(bundle_module, "_write_durably", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "bundle", CONFIG, sources)
    assert sorted(os.listdir(tmp_path)) == before


def test_an_existing_bundle_is_refused(bundle: Bundle, sources: dict[str, Path]) -> None:
    before = contents(bundle.path)
    with pytest.raises(BundleError, match="exists; choose another directory"):
        write_bundle(bundle.path, replace(CONFIG, version="2"), sources)
    assert contents(bundle.path) == before


def test_overwriting_replaces_all_of_it(
    tmp_path: Path, bundle: Bundle, sources: dict[str, Path]
) -> None:
    extended = write_bundle(
        bundle.path, CONFIG, {**sources, "model.safetensors": sources[GRAPH_FILES[0]]}, True
    )
    assert (extended.path / "model.safetensors").exists()
    renewed = write_bundle(bundle.path, replace(CONFIG, version="2"), sources, overwrite=True)
    assert Bundle.load(bundle.path) == renewed
    assert renewed.config.version == "2"
    assert not (bundle.path / "model.safetensors").exists()
    assert sorted(os.listdir(tmp_path)) == ["bundle", "sources"]


def test_the_old_bundle_stays_until_the_new_one_is_complete(
    bundle: Bundle, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, seen = os.rename, []

    def watch(source: Path, target: Path) -> None:
        if source == bundle.path:  # about to give way: both must be whole at this moment
            seen.append(Bundle.load(bundle.path).config.version)
        elif target == bundle.path:
            seen.append(Bundle.load(source).config.version)
        rename(source, target)

    monkeypatch.setattr(bundle_module.os, "rename", watch)
    write_bundle(bundle.path, replace(CONFIG, version="2"), sources, overwrite=True)
    assert seen == ["1.2.3", "2"]


@pytest.mark.parametrize(
    ("failure", "raised"),
    [(OSError(5, "Input/output error"), BundleError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_swap_that_fails_brings_the_old_bundle_back(
    tmp_path: Path,
    bundle: Bundle,
    sources: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    raised: type[BaseException],
) -> None:
    rename = os.rename

    def refuse_new(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            assert not bundle.path.exists()
            raise failure
        rename(source, target)

    monkeypatch.setattr(bundle_module.os, "rename", refuse_new)
    with pytest.raises(raised):
        write_bundle(bundle.path, replace(CONFIG, version="2"), sources, overwrite=True)
    assert Bundle.load(bundle.path) == bundle
    assert sorted(os.listdir(tmp_path)) == ["bundle", "sources"]


def test_only_a_sound_bundle_gives_way(
    tmp_path: Path, bundle: Bundle, sources: dict[str, Path]
) -> None:
    """A wrong path must not delete somebody's project, not even one with a config.json."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="not overwritten"):
        write_bundle(project, CONFIG, sources, overwrite=True)
    (project / CONFIG_FILE).write_text("{}")
    with pytest.raises(BundleError, match="not overwritten"):
        write_bundle(project, CONFIG, sources, overwrite=True)
    assert (project / "thesis.txt").read_text() == "years of work"
    (bundle.path / ".git").mkdir()
    with pytest.raises(BundleError, match="not overwritten"):
        write_bundle(bundle.path, CONFIG, sources, overwrite=True)
    with pytest.raises(BundleError, match="not a directory"):
        write_bundle(project / "thesis.txt", CONFIG, sources, overwrite=True)


def test_an_empty_directory_gives_way_when_allowed(
    tmp_path: Path, sources: dict[str, Path]
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="exists"):
        write_bundle(tmp_path / "empty", CONFIG, sources)
    assert write_bundle(tmp_path / "empty", CONFIG, sources, overwrite=True).config.name
