"""What was written is read, as files and as a configuration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.bundle import (
    CONFIG_FILE,
    GRAPH_FILES,
    PROBE_FILE,
    REQUIRED_FILES,
    STAGES,
    Bundle,
    BundleConfig,
    BundleError,
    write_bundle,
)
from model.calibration import ScoreMap
from model.probe import Probe
from tests.model.bundle_parts import CONFIG, COST, contents, make_probe


def test_what_was_written_is_read(bundle: Bundle, sources: dict[str, Path]) -> None:
    read = Bundle.load(bundle.path)
    assert read == bundle
    assert replace(read.config, files={}) == CONFIG
    assert set(read.config.files) == set(REQUIRED_FILES)
    for name, source in sources.items():
        assert read.file(name).read_bytes() == source.read_bytes()
    assert sorted(os.listdir(bundle.path)) == sorted([CONFIG_FILE, *REQUIRED_FILES])


def test_the_same_sources_give_the_same_bytes(
    tmp_path: Path, bundle: Bundle, sources: dict[str, Path]
) -> None:
    other = write_bundle(tmp_path / "other", CONFIG, dict(reversed(sources.items())))
    assert contents(other.path) == contents(bundle.path)


def test_a_file_is_asked_for_by_name(bundle: Bundle) -> None:
    assert bundle.has(PROBE_FILE, *GRAPH_FILES)
    assert not bundle.has(PROBE_FILE, "model.safetensors")


def test_its_probe_is_read(bundle: Bundle) -> None:
    assert bundle.probe().difference(make_probe().logits) == 0


@pytest.mark.parametrize(
    ("probe", "told"),
    [
        (make_probe(side=288), r"its images are \(1, 288, 288, 3\)"),
        (make_probe(length=9), r"its tokens are \(1, 9\)"),
        (make_probe(cells=72), r"its logits are \(1, 72, 72\)"),
        (
            Probe(
                *(
                    np.zeros((0, *shape), kind)
                    for shape, kind in (
                        ((320, 320, 3), np.uint8),
                        ((17,), np.int64),
                        ((80, 80), np.float32),
                    )
                )
            ),
            r"its images are \(0, 320",
        ),
        (None, "cannot be read"),
    ],
)
def test_a_probe_of_another_model_is_refused(
    tmp_path: Path, sources: dict[str, Path], probe: Probe | None, told: str
) -> None:
    path = tmp_path / "other.npz"
    if probe is None:
        path.write_bytes(b"nothing of the kind")
    else:
        probe.save(path)
    with pytest.raises(BundleError, match=rf"probe\.npz is of no use: .*{told}.*export"):
        write_bundle(tmp_path / "bundle", CONFIG, {**sources, PROBE_FILE: path})
    assert not (tmp_path / "bundle").exists()


def variant_files(sources: dict[str, Path], *names: str) -> dict[str, Path]:
    return {**sources, **dict.fromkeys(names, sources[GRAPH_FILES[0]])}


def test_graphs_of_every_precision_are_found(tmp_path: Path, sources: dict[str, Path]) -> None:
    fp16 = [f"{stage}.fp16.onnx" for stage in STAGES]
    int8 = ["image_encoder.int8.onnx", "text_encoder.onnx", "mask_decoder.int8.onnx"]
    files = variant_files(sources, *fp16, int8[0], int8[2])
    config = replace(CONFIG, precisions={"fp16": COST, "int8": COST})
    written = write_bundle(tmp_path / "bundle", config, files)
    assert [path.name for path in written.graphs()] == list(GRAPH_FILES)
    assert [path.name for path in written.graphs("fp16")] == fp16
    assert [path.name for path in written.graphs("int8")] == int8  # the text encoder stands in
    assert all(path.is_file() for path in written.graphs("int8"))


def test_a_precision_that_it_lacks_is_told(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"no int8 graphs, only fp32; .* --int8"):
        bundle.graphs("int8")


@pytest.mark.parametrize(
    ("names", "precisions", "told"),
    [
        (["image_encoder.torchscript"], {}, r"lacks text_encoder\.torchscript, mask_decoder"),
        (["mask_decoder.fp16.onnx"], {"fp16": COST}, r"lacks image_encoder\.fp16\.onnx"),
        (["image_encoder.int8.onnx"], {}, r"int8 graphs and precisions\.int8"),
        ([], {"int8": COST}, r"int8 graphs and precisions\.int8"),
    ],
)
def test_half_a_set_of_graphs_is_refused(
    tmp_path: Path,
    sources: dict[str, Path],
    names: list[str],
    precisions: dict[str, dict[str, Any]],
    told: str,
) -> None:
    config = replace(CONFIG, precisions=precisions)
    with pytest.raises(BundleError, match=rf"{told}.*export the bundle again"):
        write_bundle(tmp_path / "bundle", config, variant_files(sources, *names))


def test_its_tokenizer_is_clips(bundle: Bundle) -> None:
    ids = bundle.tokenizer().encode(["a dog"], 5).tokens[0].tolist()
    assert ids == [49406, 320, 1929, 49407, 0]


def test_optional_files_are_found_by_name(tmp_path: Path, sources: dict[str, Path]) -> None:
    extra = tmp_path / "weights"
    extra.write_bytes(b"weights")
    written = write_bundle(tmp_path / "bundle", CONFIG, {**sources, "model.safetensors": extra})
    assert Bundle.load(written.path).file("model.safetensors").read_bytes() == b"weights"


def test_a_file_that_it_lacks_is_named(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"has no model\.safetensors"):
        bundle.file("model.safetensors")
    with pytest.raises(BundleError, match="has no"):
        bundle.file("../bundle/tokenizer.json")


def test_the_configuration_is_plain_json_and_frozen(bundle: Bundle) -> None:
    text = (bundle.path / CONFIG_FILE).read_text(encoding="utf-8")
    assert "«chats»" in text
    assert json.loads(text)["format_version"] == 2
    assert BundleConfig.from_json(bundle.config.to_json()) == bundle.config
    with pytest.raises(FrozenInstanceError):
        bundle.config.threshold = 0.9  # type: ignore[misc]


def test_its_score_map_is_what_evaluation_fitted(bundle: Bundle) -> None:
    assert bundle.config.score_map is None
    knots = [[0.2, 0.1], [0.9, 0.8]]
    config = replace(bundle.config, scores={"calibration": {"knots": knots}})
    assert config.score_map == ScoreMap.of(knots)


def test_others_may_read_it(bundle: Bundle) -> None:
    """Not with the private permissions of the temporary directory that it was made in."""
    plain = bundle.path.parent / "plain"
    plain.mkdir()
    assert bundle.path.stat().st_mode == plain.stat().st_mode


def test_a_link_to_the_directory_is_followed_once(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "current").symlink_to(bundle.path)
    assert Bundle.load(tmp_path / "current").path == bundle.path.resolve()


def test_reading_one_needs_no_torch(repo_root: Path, bundle: Bundle) -> None:
    program = (
        "import sys; from model.bundle import Bundle;"
        "Bundle.load(sys.argv[1]).tokenizer().encode(['the dog'], 17);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(bundle.path)],
        cwd=repo_root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"
