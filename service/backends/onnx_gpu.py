"""A bundle's three graphs in ONNX Runtime on an NVIDIA GPU: CUDA or TensorRT execution provider.

Inputs and outputs are torch tensors that ONNX Runtime reads and writes in place (I/O binding), on
torch's stream. The same code runs on torch's CPU tensors, which is how it is tested without a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor

from model.bundle import Bundle
from service.backends.base import LoadedModel, LoadOptions, Precision
from service.backends.load_options import DeviceChoice, batch_sizes, supported_precision
from service.backends.loaded_model import complete
from service.backends.onnx_graphs import ELEMENTS, Graph, Value, open_graphs, session_options
from service.backends.onnx_providers import (
    Provider,
    cuda_provider,
    engine_cache,
    require_installed,
    require_running,
    tensorrt_provider,
)
from service.backends.torch_device import TorchDevice, find_device
from service.backends.torch_stages import StagedBackend

LARGEST_BATCH = 32
"""Unless the options say otherwise."""


class BoundStages:
    """`TensorStages` over three inference sessions, whose tensors are on `device`."""

    def __init__(self, graphs: Sequence[Graph], device: TorchDevice) -> None:
        self._image, self._text, self._mask = graphs
        self._device = device
        self._to_shrink: set[Graph] = set()

    def encode_image(self, image: Tensor) -> Sequence[Tensor]:
        return self._run(self._image, image)

    def encode_text(self, tokens: Tensor) -> Sequence[Tensor]:
        return self._run(self._text, tokens)

    def decode(self, *features: Tensor) -> Tensor:
        (logits,) = self._run(self._mask, *features)
        return logits

    def release_memory(self) -> None:
        """A session gives memory back at the end of a run, so the next run of each will."""
        self._to_shrink = {self._image, self._text, self._mask}

    def _run(self, graph: Graph, *inputs: Tensor) -> list[Tensor]:
        """`inputs` and the answer in the order of the graph's stage."""
        binding = graph.session.io_binding()
        for value, tensor in zip(graph.inputs, inputs, strict=True):
            binding.bind_input(value.name, *self._place(value, tensor))
        outputs = [self._output(value, len(inputs[0])) for value in graph.outputs]
        for value, tensor in zip(graph.outputs, outputs, strict=True):
            binding.bind_output(value.name, *self._place(value, tensor))
        graph.session.run_with_iobinding(binding, self._run_options(graph))
        return outputs

    def _output(self, value: Value, rows: int) -> Tensor:
        dtype = torch.from_numpy(np.empty(0, ELEMENTS[value.element])).dtype
        return torch.empty((rows, *value.sizes), dtype=dtype, device=self._device.device)

    def _place(self, value: Value, tensor: Tensor) -> tuple[Any, ...]:
        """Device, its index, element type, shape and address, as a binding takes them."""
        assert tensor.is_contiguous() and tensor.device == self._device.device
        where = tensor.device.type, tensor.device.index or 0
        return *where, ELEMENTS[value.element], tuple(tensor.shape), tensor.data_ptr()

    def _run_options(self, graph: Graph) -> Any:
        options = ort.RunOptions()
        on_gpu = self._device.stream is not None
        if on_gpu:
            # Whoever needs the answer waits for it, not the thread that queues the next batch.
            options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if graph in self._to_shrink:
            self._to_shrink.remove(graph)
            arena = f"{'gpu' if on_gpu else 'cpu'}:{self._device.device.index or 0}"
            options.add_run_config_entry("memory.enable_memory_arena_shrinkage", arena)
        return options


def load_onnx_gpu(path: Path, options: LoadOptions, choice: DeviceChoice) -> LoadedModel:
    """Load and verify the bundle at `path` for the GPU that `choice` names.

    Raises BundleError that says what is wrong with the bundle, ValueError with the options or the
    installation.
    """
    require_installed(choice.kind)
    device = TorchDevice(find_device("onnx", choice))
    return load_bound(Bundle.load(path), options, choice.kind, device)


def load_bound(bundle: Bundle, options: LoadOptions, kind: str, device: TorchDevice) -> LoadedModel:
    """The same on a device that is there, with the provider of `kind`; "cpu" is for tests."""
    name = f"onnx-{kind}"
    automatic: Precision = "fp16" if "fp16" in bundle.config.precisions else "fp32"
    precision = supported_precision(name, options.precision, ("fp32", "fp16"), automatic)
    sizes = batch_sizes(options, LARGEST_BATCH, padded=True)

    def open_session(path: Path, inputs: Sequence[Value]) -> Any:
        providers: list[Provider] = [("CPUExecutionProvider", {})]
        if kind != "cpu":  # the CPU's takes over what a GPU's leaves
            providers = [*_providers(kind, device, bundle, precision, sizes, inputs), *providers]
        session = ort.InferenceSession(str(path), session_options(1), providers=providers)
        require_running(session, kind)
        return session

    stages = BoundStages(open_graphs(bundle, precision, open_session), device)
    return complete(bundle, StagedBackend(name, precision, stages, device, sizes, padded=True))


def _providers(
    kind: str,
    device: TorchDevice,
    bundle: Bundle,
    precision: Precision,
    sizes: Sequence[int],
    inputs: Sequence[Value],
) -> list[Provider]:
    """Of a GPU, the best first."""
    assert device.stream is not None
    index, stream = device.device.index, device.stream.cuda_stream
    cuda = cuda_provider(index, stream)
    if kind == "cuda":
        return [cuda]
    gpu = torch.cuda.get_device_name(device.device)
    cache = engine_cache(
        Path.home() / ".cache" / "segvlm" / "tensorrt",
        bundle,
        {"gpu": gpu, "precision": precision, "sizes": sizes},
    )
    fp16 = precision == "fp16"
    return [tensorrt_provider(index, stream, inputs, sizes, fp16=fp16, cache=cache), cuda]
