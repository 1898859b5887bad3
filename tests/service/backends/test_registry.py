"""`load_model`: what it finds, and what it says when it cannot."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest

from model.bundle import BundleError, write_bundle
from service.backends import BACKENDS, load_model, torch_device
from service.backends.base import LoadOptions
from tests.service.backends import tiny_graphs


@pytest.fixture(scope="module")
def tiny_bundle(tiny_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Float32 ONNX graphs and nothing else."""
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    write_bundle(path, tiny_graphs.config(), tiny_files)
    return path


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make torch see this many CUDA devices."""
    return lambda count: monkeypatch.setattr(torch_device, "cuda_devices", lambda: count)


def refusal(backend: str, bundle: Path, **options: Any) -> str:
    with pytest.raises(ValueError, match=r"\w") as caught:
        load_model(backend, bundle, LoadOptions(**options))
    return str(caught.value)


def test_what_the_service_needs_comes_from_the_bundle(tiny_bundle: Path) -> None:
    model = load_model("onnx", tiny_bundle, LoadOptions(device="cpu", max_batch_size=5))
    assert (model.spec.name, model.spec.version) == ("tiny", "7")
    assert (model.spec.image_size, model.spec.word_length) == (
        tiny_graphs.SIZE,
        tiny_graphs.LENGTH,
    )
    assert model.spec.threshold == 0.4
    assert model.backend.name == "onnx-cpu"
    assert model.backend.batch_sizes == (1, 5)
    assert model.probe.logits.shape == (1, 16, 16)


def test_unknown_backend_names_the_known(tiny_bundle: Path) -> None:
    assert ", ".join(BACKENDS) in refusal("tpu", tiny_bundle)


@pytest.mark.parametrize(
    ("backend", "device", "offered"),
    [
        ("fake", "cuda", "auto, cpu"),
        ("onnx", "tpu", "cpu or cuda or tensorrt"),
        ("torch", "tensorrt", "cpu or cuda"),
        ("torchscript", "cuda:x", "cpu or cuda"),
        ("torch", "cpu:1", "cpu or cuda"),
    ],
)
def test_device_that_a_backend_does_not_know(
    backend: str, device: str, offered: str, tiny_bundle: Path
) -> None:
    told = refusal(backend, tiny_bundle, device=device)
    assert repr(device) in told and offered in told


@pytest.mark.parametrize("backend", ["torch", "torchscript"])
@pytest.mark.parametrize(("count", "seen"), [(0, "no CUDA device"), (1, "1 CUDA device;")])
def test_device_that_is_not_there(
    backend: str, count: int, seen: str, tiny_bundle: Path, gpus: Callable[[int], None]
) -> None:
    gpus(count)
    told = refusal(backend, tiny_bundle, device="cuda:1")
    assert f"cuda:1: torch {torch_device.torch.__version__} sees {seen}" in told
    assert "device cpu" in told and "nvidia-smi" in told


@pytest.mark.parametrize(
    ("backend", "precision", "offered"),
    [
        ("fake", "fp16", "fp32"),
        ("onnx", "bf16", "fp32 or int8"),
        ("torch", "int8", "fp32 or bf16 or fp16"),
        ("torchscript", "fp16", "fp32"),
    ],
)
def test_precision_that_a_backend_does_not_know(
    backend: str, precision: str, offered: str, tiny_bundle: Path
) -> None:
    told = refusal(backend, tiny_bundle, precision=precision, device="cpu")
    assert f"computes in {offered}, not in {precision}" in told


@pytest.mark.parametrize(
    ("backend", "options", "lacking"),
    [
        ("torch", {}, r"no model\.safetensors"),
        ("torchscript", {}, r"no image_encoder\.torchscript"),
        ("onnx", {"precision": "int8"}, "no int8 graphs"),
    ],
)
def test_artifact_that_the_bundle_lacks(
    backend: str, options: dict[str, Any], lacking: str, tiny_bundle: Path
) -> None:
    with pytest.raises(BundleError, match=f"{lacking}.*export it"):
        load_model(backend, tiny_bundle, LoadOptions(device="cpu", **options))


@pytest.mark.parametrize(
    ("backend", "package", "extra"),
    [
        ("onnx", "onnxruntime", "[serve]"),
        ("torch", "torch", "[serve-gpu]"),
        ("torchscript", "torchvision", "[serve-gpu]"),
    ],
)
def test_package_that_is_not_installed(
    backend: str, package: str, extra: str, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("service.backends.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    told = refusal(backend, tiny_bundle)
    assert f"the Python package {package}, which is not installed" in told
    assert f"pip install 'segvlm{extra}'" in told


@pytest.mark.parametrize("device", ["cuda", "tensorrt:1"])
def test_onnx_runtime_without_the_provider(device: str, tiny_bundle: Path) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this is onnxruntime-gpu")
    told = refusal("onnx", tiny_bundle, device=device)
    assert "CPUExecutionProvider" in told and "has no" in told
    assert "pip uninstall onnxruntime" in told and "segvlm[serve-gpu]" in told


def test_onnx_on_the_cpu_if_torch_sees_no_gpu(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, gpus: Callable[[int], None]
) -> None:
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: providers)
    gpus(0)
    assert load_model("onnx", tiny_bundle, LoadOptions()).backend.name == "onnx-cpu"


def test_onnx_provider_that_does_not_start(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnxruntime-gpu without CUDA's libraries falls back, and says so only in its log."""
    from service.backends.onnx_providers import require_running

    class FellBack:
        def get_providers(self) -> list[str]:
            return ["CPUExecutionProvider"]

    with pytest.raises(ValueError, match=r"CUDAExecutionProvider but could not.*gpu\[cuda,cudnn\]"):
        require_running(FellBack(), "cuda")
    with pytest.raises(ValueError, match=r"could not start it.*pip install tensorrt"):
        require_running(FellBack(), "tensorrt")
