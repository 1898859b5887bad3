"""Bundles that are not whole, or that hold what does not belong, are refused."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from model.bundle import (
    CONFIG_FILE,
    GRAPH_FILES,
    REQUIRED_FILES,
    TOKENIZER_FILE,
    Bundle,
    BundleError,
    write_bundle,
)
from tests.model.bundle_parts import CONFIG


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_one_changed_byte_is_found(bundle: Bundle, name: str) -> None:
    path = bundle.path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=f"{name} is damaged"):
        Bundle.load(bundle.path)
    assert Bundle.load(bundle.path, verify=False).config == bundle.config


@pytest.mark.parametrize("name", REQUIRED_FILES)
@pytest.mark.parametrize("verify", [True, False])
def test_a_missing_file_is_found(bundle: Bundle, name: str, verify: bool) -> None:
    (bundle.path / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        Bundle.load(bundle.path, verify=verify)


def test_a_truncated_file_is_found(bundle: Bundle) -> None:
    os.truncate(bundle.path / GRAPH_FILES[0], 10)
    with pytest.raises(BundleError, match="is damaged"):
        Bundle.load(bundle.path)


@pytest.mark.parametrize("verify", [True, False])
def test_what_does_not_belong_is_refused(bundle: Bundle, verify: bool) -> None:
    (bundle.path / "image_encoder.onnx.data").write_bytes(b"?")
    with pytest.raises(BundleError, match=r"image_encoder\.onnx\.data does not belong"):
        Bundle.load(bundle.path, verify=verify)


def test_a_foreign_directory_inside_is_refused(bundle: Bundle) -> None:
    (bundle.path / "cache").mkdir()
    with pytest.raises(BundleError, match="cache does not belong"):
        Bundle.load(bundle.path)


def test_the_file_systems_own_files_are_left_alone(bundle: Bundle) -> None:
    (bundle.path / ".DS_Store").write_bytes(b"")
    assert Bundle.load(bundle.path) == bundle


@pytest.mark.parametrize("name", [CONFIG_FILE, TOKENIZER_FILE])
def test_a_link_in_the_place_of_a_file_is_refused(
    tmp_path: Path, bundle: Bundle, name: str
) -> None:
    shutil.move(bundle.path / name, tmp_path / "elsewhere")
    (bundle.path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"symbolic link|no regular file"):
        Bundle.load(bundle.path)


def test_a_directory_in_the_place_of_a_file_is_refused(bundle: Bundle) -> None:
    (bundle.path / TOKENIZER_FILE).unlink()
    (bundle.path / TOKENIZER_FILE).mkdir()
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing"):
        Bundle.load(bundle.path)


def test_a_foreign_folder_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no bundle directory"):
        Bundle.load(tmp_path / "nowhere")
    (tmp_path / "photos").mkdir()
    with pytest.raises(BundleError, match=r"no regular file config\.json"):
        Bundle.load(tmp_path / "photos")
    (tmp_path / "photos" / CONFIG_FILE).write_text('{"architectures": ["Bert"]}')
    with pytest.raises(BundleError, match="format version None"):
        Bundle.load(tmp_path / "photos")


def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path, sources: dict[str, Path]) -> None:
    sources[TOKENIZER_FILE] = sources[GRAPH_FILES[0]]
    written = write_bundle(tmp_path / "bundle", CONFIG, sources)
    with pytest.raises(BundleError, match="not a tokenizer file"):
        written.tokenizer()
