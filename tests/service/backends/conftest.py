"""The backends under test, each with the model that it should answer like."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from model import checkpoint
from model.bundle import Bundle, write_bundle
from model.probe import EXPRESSIONS as PROBE_EXPRESSIONS
from model.probe import Probe, draw_images
from model.segvlm import SegVLM
from model.tokenizer import clip_tokenizer
from service.backends import load_model
from service.backends.base import LoadedModel, LoadOptions
from service.backends.fake import load_fake
from service.backends.onnx_gpu import load_bound
from service.backends.torch_device import TorchDevice
from service.backends.torch_graphs import GraphedStages
from service.backends.torch_stages import StagedBackend
from tests.service.backends import tiny_graphs
from tests.service.backends.simulated_cuda import CopyingDevice, simulate_cuda_graphs

SIDE = 64
LARGEST = 8
EXPRESSIONS = (
    "the red dog",
    "a cat",
    "blue",
    "sky",
    "the white dog of the cat",
    "second from the left",
    "black",
    "a man with an umbrella and a green hat who looks at the yellow bus on the right",
)

Loader = Callable[[pytest.FixtureRequest], LoadedModel]


class Tolerance(NamedTuple):
    """Largest differences as shares of the largest logit."""

    eager: float
    """From float32 PyTorch."""
    batch: float
    """From the same backend in another batch."""


# Measured from eager: 2e-6 in float32, 0.021 in bfloat16, 0.0026 in float16, 0.0012 by ONNX
# Runtime's float16, 0.21 in int8; 0.0015 with factors rounded to TF32 on a CPU.
EXACT = Tolerance(1e-4, 2e-5)
TF32 = Tolerance(0.01, 0.005)
BF16 = Tolerance(0.06, 0.03)
FP16 = Tolerance(0.01, 0.005)
INT8 = Tolerance(0.4, 2e-5)


@dataclass(frozen=True)
class Case:
    """One way to run a model, and how exact it is."""

    load: Loader
    tolerance: Tolerance = EXACT
    lively: bool = True
    """It runs `lively_lite`, so PyTorch can tell what the answers are."""


def _load(backend: str, bundle: str = "exported_bundle", **options: Any) -> Loader:
    options = {"threads": 1, "compile": False, "max_batch_size": LARGEST, **options}
    return lambda request: load_model(
        backend, request.getfixturevalue(bundle), LoadOptions(**options)
    )


def _load_fake(_: pytest.FixtureRequest) -> LoadedModel:
    return load_fake(SIDE, 17, LoadOptions(max_batch_size=LARGEST))


def _load_bound(precision: Literal["fp32", "fp16"]) -> Loader:
    """What ONNX Runtime does on a GPU, on the CPU."""

    def load(request: pytest.FixtureRequest) -> LoadedModel:
        bundle = Bundle.load(request.getfixturevalue("exported_bundle"))
        options = LoadOptions(max_batch_size=LARGEST, precision=precision)
        return load_bound(bundle, options, "cpu", TorchDevice(torch.device("cpu")))

    return load


def _load_graphed(request: pytest.FixtureRequest) -> LoadedModel:
    """PyTorch on the CPU with the batch sizes of a GPU and simulated CUDA graphs."""
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    simulate_cuda_graphs(patch)
    model = _load("torch", device="cpu")(request)
    stages = GraphedStages(model.backend._stages)
    sizes = (1, 2, 3, 4, 6, LARGEST)
    device = CopyingDevice(torch.device("cpu"))
    backend = StagedBackend("torch-cpu", "fp32", stages, device, sizes, padded=True)
    return replace(model, backend=backend)


CASES: dict[str, Case] = {
    "fake": Case(_load_fake, lively=False),
    "onnx-cpu": Case(_load("onnx", device="cpu", precision="fp32")),
    "onnx-lanes": Case(_load("onnx", device="cpu", precision="fp32", threads=3)),
    "onnx-default": Case(_load("onnx", "default_bundle", device="cpu"), INT8, lively=False),
    "onnx-cpu-int8": Case(_load("onnx", device="cpu", precision="int8"), INT8),
    "onnx-bound": Case(_load_bound("fp32")),
    "onnx-bound-fp16": Case(_load_bound("fp16"), FP16),
    "torch-cpu": Case(_load("torch", device="cpu")),
    "torch-graphed": Case(_load_graphed),
    "torch-cpu-bf16": Case(_load("torch", device="cpu", precision="bf16"), BF16),
    "torchscript-cpu": Case(_load("torchscript", device="cpu")),
}
GPU_CASES: dict[str, Case] = {
    "torch-cuda": Case(_load("torch", device="cuda", precision="fp32"), TF32),
    "torch-cuda-bf16": Case(_load("torch", device="cuda", precision="bf16"), BF16),
    "torch-cuda-fp16": Case(_load("torch", device="cuda", precision="fp16"), FP16),
    "torch-cuda-compiled": Case(
        _load("torch", device="cuda", precision="bf16", compile=True), BF16
    ),
    "torchscript-cuda": Case(_load("torchscript", device="cuda"), TF32),
    "onnx-cuda": Case(_load("onnx", device="cuda", precision="fp32"), TF32),
    "onnx-cuda-fp16": Case(_load("onnx", device="cuda", precision="fp16"), FP16),
    "onnx-tensorrt": Case(_load("onnx", device="tensorrt", precision="fp32"), TF32),
    "onnx-tensorrt-fp16": Case(_load("onnx", device="tensorrt", precision="fp16"), FP16),
}


def noise(count: int, side: int = SIDE) -> NDArray[np.uint8]:
    """Images (count, side, side, 3) of random pixels."""
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@dataclass
class Subject:
    """A loaded model with eight questions."""

    model: LoadedModel
    case: Case

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        return noise(LARGEST, self.model.spec.image_size)

    @cached_property
    def tokens(self) -> NDArray[np.int64]:
        return self.model.tokenizer.encode(EXPRESSIONS, self.model.spec.word_length).tokens

    @cached_property
    def answers(self) -> NDArray[np.float32]:
        """Expression i on image i, in one batch."""
        return self.ask(range(LARGEST), range(LARGEST))

    def ask(self, images: Any, texts: Any) -> NDArray[np.float32]:
        """The logits of these images with these expressions."""
        backend = self.model.backend
        encoded = backend.encode_image(self.images[list(images)])
        return backend.decode(encoded, backend.encode_text(self.tokens[list(texts)]))()

    def assert_same(self, ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
        """Equal but for what another batch changes in rounding."""
        assert ours.shape == theirs.shape
        limit = self.case.tolerance.batch * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes with one thread: for small models that is quicker than with two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def quiet_torch() -> Iterator[None]:
    """Two threads on a busy machine wait for each other; see `one_thread`."""
    with one_thread():
        yield


@pytest.fixture(
    scope="module",
    params=[*CASES, *(pytest.param(name, marks=pytest.mark.gpu) for name in GPU_CASES)],
)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    name = request.param
    case = (CASES | GPU_CASES)[name]
    provider = {"onnx-cuda": "CUDA", "onnx-tensorrt": "Tensorrt"}.get(name.removesuffix("-fp16"))
    if provider and f"{provider}ExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip(f"onnxruntime-gpu with its {provider} provider is not installed")
    with one_thread():
        yield Subject(case.load(request), case)


@pytest.fixture(scope="session")
def exported_bundle(
    lively_lite: SegVLM, lively_graphs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """`lively_lite` as every kind of file that `training.export` makes, without its proofs."""
    from training.exporting.half_precision import export_half_precision
    from training.exporting.quantisation import export_int8
    from training.exporting.torchscript import export_torchscript

    parts = tmp_path_factory.mktemp("parts") / "files"
    shutil.copytree(lively_graphs, parts)
    images, tokenizer = draw_images(SIDE), clip_tokenizer()
    tokens = tokenizer.encode(PROBE_EXPRESSIONS, 17).tokens
    with one_thread():
        export_half_precision(parts)
        export_int8(parts, [(image, tokens) for image in (*images, *noise(2))])
        export_torchscript(lively_lite, parts)
        Probe(images, tokens, eager(lively_lite, images, tokens)).save(parts / "probe.npz")
    checkpoint.save(lively_lite, parts / "model.safetensors")
    tokenizer.save(parts / "tokenizer.json")
    config = tiny_graphs.config(SIDE, 17, "segvlm-lite", precisions=("fp16", "int8"))
    path = tmp_path_factory.mktemp("exported") / "lively"
    write_bundle(path, config, {part.name: part for part in parts.iterdir()})
    return path


def eager(
    model: SegVLM, images: NDArray[np.uint8], tokens: NDArray[np.int64]
) -> NDArray[np.float32]:
    """What PyTorch itself answers to image i with expression i, in float32."""
    with torch.inference_mode():
        logits = model(torch.from_numpy(images), torch.from_numpy(tokens))
    answer: NDArray[np.float32] = logits.numpy()
    return answer


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the bundle of `tiny_graphs` is made of, by name."""
    return tiny_graphs.files(tmp_path_factory.mktemp("tiny"))
