"""The backends under test, each with the model that it should answer like."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from model.bundle import Bundle
from model.config import preset_config
from model.deformable import DeformableConv2d
from model.segvlm import SegVLM, build_segvlm
from model.tokenizer import clip_tokenizer
from service.backends import load_model
from service.backends.base import LoadedModel, LoadOptions
from service.backends.fake import load_fake
from service.backends.onnx_gpu import load_bound
from service.backends.torch_device import TorchDevice
from tests.service.backends import tiny_graphs

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


@dataclass(frozen=True)
class Case:
    """One way to run a model, and how near its logits must be to those of eager float32 PyTorch.

    `tolerance` bounds the largest difference as a share of the largest logit. Between runs of the
    same backend, where only the batch differs, a tenth of it is allowed.
    """

    load: Loader
    tolerance: float
    bundle: str | None = "exported_bundle"
    """The fixture that names its bundle, if PyTorch can tell what the answers are."""


def _load(backend: str, bundle: str = "exported_bundle", **options: Any) -> Loader:
    options = {"threads": 1, "compile": False, "max_batch_size": LARGEST, **options}
    return lambda request: load_model(
        backend, request.getfixturevalue(bundle), LoadOptions(**options)
    )


def _load_fake(_: pytest.FixtureRequest) -> LoadedModel:
    return load_fake(SIDE, 17, LoadOptions(max_batch_size=LARGEST))


def _load_bound_on_cpu(request: pytest.FixtureRequest) -> LoadedModel:
    bundle = Bundle.load(request.getfixturevalue("exported_bundle"))
    options = LoadOptions(max_batch_size=LARGEST, precision="fp32")
    return load_bound(bundle, options, "cpu", TorchDevice(torch.device("cpu")))


def _load_padded(request: pytest.FixtureRequest) -> LoadedModel:
    """PyTorch on the CPU with the batch sizes of a GPU."""
    model = _load("torch")(request)
    model.backend.batch_sizes = (1, 2, 3, 4, 6, 8)
    model.backend._padded = True
    return model


CASES: dict[str, Case] = {
    "fake": Case(_load_fake, 0.0, None),
    "onnx-cpu": Case(_load("onnx", device="cpu"), 1e-4),
    "onnx-default": Case(_load("onnx", "default_bundle", device="cpu"), 1e-4, None),
    "onnx-bound": Case(_load_bound_on_cpu, 1e-4),
    "torch-cpu": Case(_load("torch", device="cpu"), 1e-4),
    "torch-padded": Case(_load_padded, 1e-4),
    "torch-cpu-bf16": Case(_load("torch", device="cpu", precision="bf16"), 0.1),
    "torch-cpu-fp16": Case(_load("torch", device="cpu", precision="fp16"), 0.02),
    "torchscript-cpu": Case(_load("torchscript", device="cpu"), 1e-4),
}
GPU_CASES: dict[str, Case] = {
    "torch-cuda": Case(_load("torch", device="cuda", precision="fp32"), 0.02),  # TF32
    "torch-cuda-bf16": Case(_load("torch", device="cuda", precision="bf16"), 0.1),
    "torch-cuda-fp16": Case(_load("torch", device="cuda", precision="fp16"), 0.02),
    "torch-cuda-compiled": Case(_load("torch", device="cuda", precision="bf16", compile=True), 0.1),
    "torchscript-cuda": Case(_load("torchscript", device="cuda"), 0.02),
    "onnx-cuda": Case(_load("onnx", device="cuda", precision="fp32"), 0.02),
    "onnx-tensorrt": Case(_load("onnx", device="tensorrt", precision="fp32"), 0.02),
}


@dataclass
class Subject:
    """A loaded model with eight questions."""

    model: LoadedModel
    case: Case

    @cached_property
    def images(self) -> NDArray[np.uint8]:
        side = self.model.spec.image_size
        rng = np.random.default_rng(0)
        return rng.integers(0, 256, (LARGEST, side, side, 3), dtype=np.uint8)

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
        limit = 0.1 * self.case.tolerance * np.abs(theirs).max()
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=limit)


@contextmanager
def one_thread() -> Iterator[None]:
    """Inside, torch computes with one thread, which for small models is quicker than with two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(
    scope="module",
    params=[*CASES, *(pytest.param(name, marks=pytest.mark.gpu) for name in GPU_CASES)],
)
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    case = (CASES | GPU_CASES)[request.param]
    with one_thread():
        yield Subject(case.load(request), case)


@pytest.fixture(scope="session")
def lively_model() -> SegVLM:
    """Random weights under which everything matters: offsets and statistics are not zero."""
    torch.manual_seed(0)
    model = build_segvlm(preset_config("segvlm-lite", image_size=SIDE))
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
            elif isinstance(module, DeformableConv2d):
                module.offset.bias.uniform_(-2, 2)
                module.offset.weight.normal_(std=0.01)
    return model.eval()


@pytest.fixture(scope="session")
def exported_bundle(lively_model: SegVLM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with every kind of file, which all backends can run."""
    from training.export import export_bundle  # slow, and most tests here do without

    path = tmp_path_factory.mktemp("exported") / "lively"
    with one_thread():
        export_bundle(
            lively_model,
            clip_tokenizer(),
            path,
            name="lively",
            version="1",
            threshold=0.35,
            training={},
            scores={},
        )
    return path


@pytest.fixture(scope="session")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """What the bundle of `tiny_graphs` is made of, by name."""
    return tiny_graphs.files(tmp_path_factory.mktemp("tiny"))
