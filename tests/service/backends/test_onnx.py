"""ONNX Runtime on the CPU, and what is checked of every graph before it is served."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

from model.bundle import Bundle, BundleConfig, BundleError, write_bundle
from service.backends.base import LoadOptions, OutOfMemory
from service.backends.lanes import usable_cores
from service.backends.onnx import OnnxBackend, load_onnx
from tests.service.backends import tiny_graphs
from tests.service.backends.tiny_graphs import LENGTH, SIZE

ON_CPU = LoadOptions(device="cpu", threads=1)

MakeBundle = Callable[..., Bundle]


@pytest.fixture
def make_bundle(tiny_files: dict[str, Path], tmp_path: Path) -> MakeBundle:
    """A bundle of the tiny graphs, some of them exchanged: `name in the bundle=path`."""

    def make(exchanged: dict[str, Path], config: BundleConfig | None = None) -> Bundle:
        files = {**tiny_files, **exchanged}
        return write_bundle(tmp_path / "bundle", config or tiny_graphs.config(), files)

    return make


def test_it_computes_what_the_graphs_say(make_bundle: MakeBundle) -> None:
    backend = OnnxBackend(make_bundle({}), ON_CPU)
    assert backend.precision == "fp32"
    images = np.zeros((1, SIZE, SIZE, 3), dtype=np.uint8)
    images[0, :, SIZE // 2 :, 0] = 200
    texts = backend.encode_text(np.full((1, LENGTH), 16))  # row 0 of the table, six times
    state = texts[0].arrays[1][0, 0]
    (logits,) = backend.decode(backend.encode_image(images), texts)()
    np.testing.assert_allclose(logits[:, : SIZE // 8], state, rtol=1e-5)
    np.testing.assert_allclose(logits[:, SIZE // 8 :], 200 + state, rtol=1e-5)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_sessions_are_tuned(make_bundle: MakeBundle, threads: int) -> None:
    """One for all cores together, one for rows that have a core each."""
    backend = OnnxBackend(make_bundle({}), LoadOptions(device="cpu", threads=threads))
    together = (backend._image, backend._text, backend._mask)
    alone = (backend._image_alone, backend._mask_alone)
    for graphs, expected in ((together, threads or usable_cores()), (alone, 1)):
        for graph in graphs:
            options = graph.session.get_session_options()
            assert (options.intra_op_num_threads, options.inter_op_num_threads) == (expected, 1)
            assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
            level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
            assert options.graph_optimization_level == level


def test_a_batch_has_a_row_for_each_core(make_bundle: MakeBundle) -> None:
    bundle = make_bundle({})
    for threads, largest in ((2, 8), (20, 20)):
        backend = OnnxBackend(bundle, LoadOptions(device="cpu", threads=threads))
        assert backend.batch_sizes == (1, largest)


def test_int8_takes_the_graphs_of_that_name_if_there_are_any(
    make_bundle: MakeBundle, tiny_files: dict[str, Path], tmp_path: Path
) -> None:
    """The text encoder may have none; then its float32 graph stands in."""
    other = tiny_graphs.mask_decoder(tmp_path / "other.onnx", scale=2.0)
    exchanged = {
        "image_encoder.int8.onnx": tiny_files["image_encoder.onnx"],
        "mask_decoder.int8.onnx": other,
    }
    bundle = make_bundle(exchanged, tiny_graphs.config(precisions=("int8",)))
    small = OnnxBackend(bundle, ON_CPU)
    whole = OnnxBackend(bundle, replace(ON_CPU, precision="fp32"))
    assert (whole.precision, small.precision) == ("fp32", "int8")
    questions = np.zeros((1, SIZE, SIZE, 3), dtype=np.uint8), np.full((1, LENGTH), 3)
    (ours,), (theirs,) = (
        backend.decode(backend.encode_image(questions[0]), backend.encode_text(questions[1]))()
        for backend in (small, whole)
    )
    np.testing.assert_allclose(ours, 2 * theirs)


@pytest.mark.parametrize(
    ("name", "make", "told"),
    [
        (
            "mask_decoder.onnx",
            lambda path: tiny_graphs.mask_decoder(path, "scores"),
            r"mask_decoder\.onnx gives scores, expected logits; export",
        ),
        (
            "image_encoder.onnx",
            lambda path: tiny_graphs.text_encoder(path),
            r"image_encoder\.onnx reads tokens, expected image; export",
        ),
        (
            "image_encoder.onnx",
            lambda path: tiny_graphs.image_encoder(path, batch=4),
            r"image is tensor\(uint8\) \[4, 64, 64, 3\], expected .*\[batch, 64, 64, 3\]; export",
        ),
        (
            "text_encoder.onnx",
            lambda path: tiny_graphs.text_encoder(path, width=9),
            r"mask_decoder\.onnx: words is tensor\(float\) \['batch', 6, 8\], expected .*6, 9\]",
        ),
        (
            "mask_decoder.onnx",
            lambda path: path.write_bytes(b"not a graph"),
            r"cannot load .*mask_decoder\.onnx.*export",
        ),
    ],
)
def test_graph_that_is_not_what_its_name_says(
    make_bundle: MakeBundle, tmp_path: Path, name: str, make: Callable[[Path], Any], told: str
) -> None:
    make(tmp_path / "odd.onnx")
    with pytest.raises(BundleError, match=told):
        OnnxBackend(make_bundle({name: tmp_path / "odd.onnx"}), ON_CPU)


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"image_size": 96}, r"image is .*\['batch', 64, 64, 3\], expected .*\[batch, 96, 96, 3\]"),
        ({"word_length": 7}, r"tokens is .*\['batch', 6\], expected .*\[batch, 7\]"),
    ],
)
def test_graphs_of_other_sizes_than_the_configuration(
    make_bundle: MakeBundle, tmp_path: Path, config: dict[str, int], told: str
) -> None:
    sizes = {"image_size": SIZE, "word_length": LENGTH, **config}
    tiny_graphs.probe(**sizes).save(tmp_path / "probe.npz")
    bundle = make_bundle({"probe.npz": tmp_path / "probe.npz"}, tiny_graphs.config(**sizes))
    with pytest.raises(BundleError, match=told):
        OnnxBackend(bundle, ON_CPU)


def test_bundle_is_verified_before_it_is_served(make_bundle: MakeBundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle directory"):
        load_onnx(tmp_path / "missing", ON_CPU)
    path = make_bundle({}).path
    with (path / "mask_decoder.onnx").open("ab") as stream:
        stream.write(b"\x00")
    with pytest.raises(BundleError, match=r"mask_decoder\.onnx is damaged"):
        load_onnx(path, ON_CPU)


def test_no_memory_is_told_apart(make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = OnnxBackend(make_bundle({}), ON_CPU)

    class Full:
        def run(self, *_: object) -> None:
            raise RuntimeError("BFCArena: Failed to allocate memory for requested buffer of size 9")

    monkeypatch.setattr(backend, "_image_alone", backend._image._replace(session=Full()))
    images = np.zeros((1, SIZE, SIZE, 3), dtype=np.uint8)
    with pytest.raises(OutOfMemory, match="requested buffer"):
        backend.encode_image(images)


@pytest.mark.parametrize("imported", ["service.backends", "training"])
def test_onnx_runtime_does_not_report_its_use(
    imported: str, repo_root: Path, tmp_path: Path
) -> None:
    """It keeps what it will send in the home directory."""
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(repo_root)}
    for name in ("ORT_DISABLE_TELEMETRY", "XDG_CACHE_HOME"):
        environment.pop(name, None)
    program = f"import {imported}, onnxruntime; onnxruntime.get_available_providers()"
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
    assert not list(tmp_path.rglob("*onnxruntime*"))
