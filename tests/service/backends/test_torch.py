"""The network in PyTorch: precision of its parts, its files, and what compiles it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from model import checkpoint
from model.bundle import BundleError, write_bundle
from model.config import CLIP_MEAN, CLIP_STD, preset_config
from model.deformable import DeformableConv2d
from model.layers import Coordinates
from model.segvlm import SegVLM, build_segvlm
from service.backends.base import LoadOptions
from service.backends.torch import (
    NetworkStages,
    choose_tf32,
    convert,
    load_network,
    load_torch,
)
from service.backends.torch_compilation import CompiledStages
from tests.service.backends import tiny_graphs
from tests.service.backends.conftest import SIDE

CPU = torch.device("cpu")
HALF = [torch.bfloat16, torch.float16]


@pytest.fixture
def weights_bundle(
    lively_lite: SegVLM, tiny_files: dict[str, Path], tmp_path: Path
) -> dict[str, Path]:
    """What a bundle of `lively_lite` is made of, by name; its ONNX graphs are of no use."""
    checkpoint.save(lively_lite, tmp_path / "model.safetensors")
    tiny_graphs.probe(SIDE, 17).save(tmp_path / "probe.npz")
    names = ("model.safetensors", "probe.npz")
    return {**tiny_files, **{name: tmp_path / name for name in names}}


def load(files: dict[str, Path], path: Path, **options: object) -> object:
    write_bundle(path, tiny_graphs.config(SIDE, 17, "segvlm-lite"), files)
    return load_torch(path, LoadOptions(device="cpu", threads=1, **options))


@pytest.mark.parametrize("dtype", HALF)
def test_what_counts_pixels_stays_in_float32(lively_lite: SegVLM, dtype: torch.dtype) -> None:
    model = build_segvlm(lively_lite.config)
    model.load_state_dict(lively_lite.state_dict())
    convert(model, dtype)
    exact = {
        id(tensor)
        for module in model.modules()
        if isinstance(module, DeformableConv2d | Coordinates)
        for tensor in (*module.parameters(), *module.buffers())
    }
    assert len(exact) >= 3 + 2  # a deformable convolution with its offsets, two coordinates
    reference = {**dict(lively_lite.named_parameters()), **dict(lively_lite.named_buffers())}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if id(tensor) in exact:
            assert torch.equal(tensor, reference[name]), name
        elif tensor.is_floating_point():
            assert tensor.dtype == dtype, name


@pytest.mark.parametrize("dtype", HALF)
def test_pixels_are_normalised_in_float32(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CLIP's mean has no exact half; the difference to it would be off by half a pixel value."""
    config = preset_config("segvlm-lite", image_size=SIDE, mean=CLIP_MEAN, std=CLIP_STD)
    stages = NetworkStages(build_segvlm(config).eval(), dtype, CPU)
    seen: list[Tensor] = []

    class Watch(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, ...]:
            seen.append(x)
            raise InterruptedError

    monkeypatch.setattr(stages._model, "image_encoder", Watch())
    image = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).expand(1, 16, 16, 3)
    with pytest.raises(InterruptedError):
        stages.encode_image(image)
    mean, std = (255 * torch.tensor(value).view(1, 3, 1, 1) for value in (CLIP_MEAN, CLIP_STD))
    exact = (image.permute(0, 3, 1, 2) - mean) / std
    assert seen[0].dtype == dtype
    # Nothing but the last step, the conversion itself, rounds.
    rounding = exact.abs().max() * torch.finfo(dtype).eps / 2
    assert (seen[0].float() - exact).abs().max() <= rounding
    assert (seen[0] == exact.to(dtype)).float().mean() > 0.98


def test_the_model_that_was_given_stays_as_it_is(lively_lite: SegVLM) -> None:
    before = {name: value.clone() for name, value in lively_lite.state_dict().items()}
    NetworkStages(lively_lite, torch.bfloat16, CPU)
    for name, value in lively_lite.state_dict().items():
        assert torch.equal(value, before[name]) and value.dtype == before[name].dtype


def test_batch_norms_are_folded_and_weights_channels_last(lively_lite: SegVLM) -> None:
    model = NetworkStages(lively_lite, torch.float32, CPU)._model
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) <= 2  # after products with the sentence
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)


def test_weights_of_another_model(weights_bundle: dict[str, Path], tmp_path: Path) -> None:
    other = build_segvlm(preset_config("segvlm-lite", image_size=2 * SIDE))
    checkpoint.save(other, weights_bundle["model.safetensors"])
    with pytest.raises(BundleError, match=r"model with image_size 128, config.json says 64"):
        load(weights_bundle, tmp_path / "bundle")


def test_weights_that_are_none(weights_bundle: dict[str, Path], tmp_path: Path) -> None:
    weights_bundle["model.safetensors"].write_bytes(b"no tensors")
    with pytest.raises(BundleError, match=r"not a readable safetensors file.*again"):
        load(weights_bundle, tmp_path / "bundle")


def test_a_network_without_a_bundle(lively_lite: SegVLM) -> None:
    """For measurements: it answers its own question, which is the float32 network's answer."""
    loaded = load_network(lively_lite, LoadOptions(device="cpu", max_batch_size=3))
    backend, probe = loaded.backend, loaded.probe
    features = backend.encode_image(probe.images), backend.encode_text(probe.tokens)
    assert probe.difference(backend.decode(*features)()) < 1e-4
    assert (loaded.spec.image_size, loaded.spec.word_length) == (SIDE, 17)
    assert (backend.name, backend.precision, backend.batch_sizes) == ("torch-cpu", "fp32", (1, 3))


@pytest.mark.parametrize(("precision", "tolerance"), [("fp16", 0.01), ("bf16", 0.06)])
def test_half_precisions_on_the_cpu(
    lively_lite: SegVLM, precision: Literal["fp16", "bf16"], tolerance: float
) -> None:
    loaded = load_network(lively_lite, LoadOptions(device="cpu", precision=precision))
    backend, probe = loaded.backend, loaded.probe
    features = backend.encode_image(probe.images), backend.encode_text(probe.tokens)
    logits = backend.decode(*features)()
    assert probe.difference(logits) <= tolerance
    assert all(
        t.dtype != torch.float32 for row in (*features[0], *features[1]) for t in row.tensors
    )


def test_threads(weights_bundle: dict[str, Path], tmp_path: Path) -> None:
    torch.set_num_threads(2)
    load(weights_bundle, tmp_path / "bundle")
    assert torch.get_num_threads() == 1


@pytest.fixture
def tf32() -> Iterator[None]:
    """What torch may do is put back."""
    precision, convolutions = (
        torch.get_float32_matmul_precision(),
        torch.backends.cudnn.allow_tf32,
    )
    yield
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = convolutions


@pytest.mark.usefixtures("tf32")
@pytest.mark.parametrize(
    ("precision", "difference", "allowed"),
    [
        ("fp32", 0.001, True),
        ("fp32", 0.02, False),
        ("fp32", float("nan"), False),
        ("bf16", 9, True),
    ],
)
def test_tf32_only_within_the_tolerance(precision: str, difference: float, allowed: bool) -> None:
    asked: list[str] = []

    def ask() -> float:
        asked.append(torch.get_float32_matmul_precision())
        return difference

    choose_tf32(ask, precision)  # type: ignore[arg-type]
    assert asked == (["high"] if precision == "fp32" else [])  # asked with TF32 on
    assert torch.get_float32_matmul_precision() == ("high" if allowed else "highest")
    assert torch.backends.cudnn.allow_tf32 is allowed


class Halves:
    """Stages of a line each."""

    def encode_image(self, image: Tensor) -> tuple[Tensor, ...]:
        return (image.float() / 2,)

    def encode_text(self, tokens: Tensor) -> tuple[Tensor, ...]:
        return (tokens.float(),)

    def decode(self, *features: Tensor) -> Tensor:
        return features[0] + features[1]

    def release_memory(self) -> None:
        pass


def test_one_compilation_serves_all_larger_batches() -> None:
    torch._dynamo.reset()
    compiled: list[object] = []

    def compiler(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        compiled.append(inputs)
        return graph.forward

    stages = CompiledStages(Halves(), compiler)
    with torch.inference_mode():
        for rows in (1, 2, 3, 5, 8):
            image = torch.arange(rows * 6, dtype=torch.uint8).view(rows, 6)
            assert torch.equal(stages.encode_image(image)[0], image / 2)
    assert len(compiled) == 2  # for one row, and for any larger number


@pytest.mark.slow
def test_the_network_is_compiled_whole(lively_lite: SegVLM) -> None:
    """No part of a stage stays in Python, and no batch size is a part of a graph."""
    torch._dynamo.reset()
    compiled: list[object] = []

    def compiler(graph: torch.fx.GraphModule, inputs: object) -> Callable[..., object]:
        compiled.append(inputs)
        return graph.forward

    network = NetworkStages(lively_lite, torch.float32, CPU)
    stages = CompiledStages(network, compiler)
    rng = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for rows in (1, 2, 3):
            image = torch.randint(0, 256, (rows, SIDE, SIDE, 3), generator=rng).to(torch.uint8)
            tokens = torch.randint(1, 49406, (rows, 17), generator=rng)
            features = *stages.encode_image(image), *stages.encode_text(tokens)
            expected = network.decode(*network.encode_image(image), *network.encode_text(tokens))
            torch.testing.assert_close(stages.decode(*features), expected, rtol=1e-4, atol=1e-4)
    assert len(compiled) == 3 * 2  # each stage for one row, and for any larger number


def test_what_cannot_be_compiled_runs_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: object) -> None:
        raise ValueError("no compiler here")

    torch._dynamo.reset()
    stages = CompiledStages(Halves(), broken)
    with caplog.at_level(logging.WARNING), torch.inference_mode():
        for _ in range(2):
            assert torch.equal(stages.decode(torch.ones(2), torch.ones(2)), torch.full((2,), 2.0))
    (told,) = caplog.messages
    assert "decode is not compiled" in told and "no compiler here" in told


def test_errors_of_the_model_are_not_errors_of_the_compiler() -> None:
    torch._dynamo.reset()
    stages = CompiledStages(Halves(), "eager")
    with torch.inference_mode(), pytest.raises((RuntimeError, TorchDynamoException)):
        stages.decode(torch.ones(2), torch.ones(3))
    assert torch.equal(stages.decode(torch.ones(2), torch.ones(2)), torch.full((2,), 2.0))
