"""ONNX Runtime's bindings on the CPU, and what the providers of a GPU are told."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.bundle import Bundle, write_bundle
from service.backends.base import LoadedModel, LoadOptions
from service.backends.onnx_gpu import BoundStages, load_bound
from service.backends.onnx_graphs import Value
from service.backends.onnx_providers import cuda_provider, engine_cache, tensorrt_provider
from service.backends.torch_device import TorchDevice
from tests.service.backends import tiny_graphs
from tests.service.backends.tiny_graphs import LENGTH, SIZE


class WatchedSession:
    """Passes runs on and remembers their options and batch sizes."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.shrunk: list[bool] = []
        self.sizes: list[int] = []

    def io_binding(self) -> Any:
        return self._session.io_binding()

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        self._session.run_with_iobinding(binding, options)
        self.sizes.append(binding.get_outputs()[0].shape()[0])
        try:
            arena = options.get_run_config_entry("memory.enable_memory_arena_shrinkage")
        except RuntimeError:  # it was not set
            arena = ""
        self.shrunk.append(arena == "cpu:0")


@pytest.fixture
def model(tiny_files: dict[str, Path], tmp_path: Path) -> LoadedModel:
    bundle = write_bundle(tmp_path / "tiny", tiny_graphs.config(), tiny_files)
    options = LoadOptions(max_batch_size=4)
    return load_bound(bundle, options, "cpu", TorchDevice(torch.device("cpu")))


@pytest.fixture
def sessions(model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> list[WatchedSession]:
    """Of the image encoder, the text encoder and the mask decoder."""
    stages = model.backend._stages
    assert isinstance(stages, BoundStages)
    watched = []
    for name in ("_image", "_text", "_mask"):
        graph = getattr(stages, name)
        watched.append(WatchedSession(graph.session))
        monkeypatch.setattr(stages, name, graph._replace(session=watched[-1]))
    return watched


def ask(model: LoadedModel, count: int) -> np.ndarray:
    images = np.full((count, SIZE, SIZE, 3), 50, dtype=np.uint8)
    tokens = np.arange(count * LENGTH).reshape(count, LENGTH)
    backend = model.backend
    return backend.decode(backend.encode_image(images), backend.encode_text(tokens))()


def test_batches_are_padded_to_their_bucket(
    model: LoadedModel, sessions: list[WatchedSession]
) -> None:
    assert model.backend.batch_sizes == (1, 2, 3, 4)
    for count in (1, 2, 3, 4):
        assert len(ask(model, count)) == count
    assert [session.sizes for session in sessions] == [[1, 2, 3, 4]] * 3


def test_memory_is_given_back_by_the_next_run(
    model: LoadedModel, sessions: list[WatchedSession]
) -> None:
    first = ask(model, 2)
    model.backend.release_memory()
    np.testing.assert_array_equal(ask(model, 2), first)
    ask(model, 2)
    assert [session.shrunk for session in sessions] == [[False, True, False]] * 3


def test_the_cuda_provider_works_on_our_stream() -> None:
    name, options = cuda_provider(1, 0xABC)
    assert name == "CUDAExecutionProvider"
    assert options == {
        "device_id": "1",
        "user_compute_stream": "2748",
        "arena_extend_strategy": "kSameAsRequested",
    }


def test_the_tensorrt_provider_has_one_engine_for_all_sizes(tmp_path: Path) -> None:
    inputs = [
        Value("p3", "tensor(float)", (48, 8, 8)),
        Value("pad_mask", "tensor(bool)", (17,)),
    ]
    name, options = tensorrt_provider(0, 5, inputs, (1, 2, 16), fp16=True, cache=tmp_path)
    assert name == "TensorrtExecutionProvider"
    assert options["trt_profile_min_shapes"] == "p3:1x48x8x8,pad_mask:1x17"
    assert options["trt_profile_opt_shapes"] == "p3:16x48x8x8,pad_mask:16x17"
    assert options["trt_profile_max_shapes"] == "p3:16x48x8x8,pad_mask:16x17"
    assert (options["trt_fp16_enable"], options["user_compute_stream"]) == ("1", "5")
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "1"
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(tmp_path)
    assert all(isinstance(value, str) for value in options.values())


def test_engines_of_other_circumstances_are_kept_apart(
    tiny_files: dict[str, Path], tmp_path: Path
) -> None:
    def bundle(name: str, **exchanged: Path) -> Bundle:
        files = {**tiny_files, **{f"{k}.onnx": v for k, v in exchanged.items()}}
        return write_bundle(tmp_path / name, tiny_graphs.config(), files)

    one = bundle("one")
    other = bundle("other", text_encoder=tiny_graphs.text_encoder(tmp_path / "t.onnx", width=9))
    root = tmp_path / "engines"
    facts = {"gpu": "H200", "sizes": (1, 2)}
    caches = [
        engine_cache(root, one, facts),
        engine_cache(root, one, {**facts, "sizes": (1, 4)}),
        engine_cache(root, one, {**facts, "gpu": "T4"}),
        engine_cache(root, other, facts),
    ]
    assert len(set(caches)) == 4
    assert engine_cache(root, bundle("same"), facts) == caches[0]
    for cache in caches:
        assert stat.S_IMODE(os.stat(cache).st_mode) == 0o700


def test_no_place_for_engines(tmp_path: Path, tiny_files: dict[str, Path]) -> None:
    bundle = write_bundle(tmp_path / "tiny", tiny_graphs.config(), tiny_files)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"home directory.*or choose device cuda"):
        engine_cache(tmp_path / "file", bundle, {})
