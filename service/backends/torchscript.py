"""A bundle's three TorchScript modules, in float32, on a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torchvision  # noqa: F401 - registers the deformable convolution that the modules call
from torch import Tensor

from model.bundle import TORCHSCRIPT_FILES, Bundle, BundleError
from service.backends.base import LoadedModel, LoadOptions
from service.backends.load_options import batch_sizes, device_choice, supported_precision
from service.backends.loaded_model import complete
from service.backends.torch_device import TorchDevice, find_device
from service.backends.torch_stages import StagedBackend

LARGEST_BATCH = {"cpu": 8, "cuda": 32}
"""Unless the options say otherwise."""


class ScriptStages:
    """`TensorStages` over the modules of `*.torchscript`."""

    def __init__(self, bundle: Bundle, device: torch.device) -> None:
        """Raises BundleError for a module that is not in the bundle or cannot be loaded."""
        self._image, self._text, self._mask = (
            _load(bundle.file(name), device) for name in TORCHSCRIPT_FILES
        )

    def encode_image(self, image: Tensor) -> Sequence[Tensor]:
        pyramid: Sequence[Tensor] = self._image(image)
        return pyramid

    def encode_text(self, tokens: Tensor) -> Sequence[Tensor]:
        text: Sequence[Tensor] = self._text(tokens)
        return text

    def decode(self, *features: Tensor) -> Tensor:
        logits: Tensor = self._mask(*features)
        return logits

    def release_memory(self) -> None:
        pass


def load_torchscript(path: Path, options: LoadOptions) -> LoadedModel:
    """Load and verify the bundle at `path`.

    Raises BundleError that says what is wrong with the bundle, ValueError with the options.
    """
    choice = device_choice("torchscript", options.device, ("cpu", "cuda"))
    device = TorchDevice(find_device("torchscript", choice))
    kind, on_gpu = device.device.type, device.stream is not None
    name = f"torchscript-{kind}"
    precision = supported_precision(name, options.precision, ("fp32",), "fp32")
    sizes = batch_sizes(options, LARGEST_BATCH[kind], padded=on_gpu)
    bundle = Bundle.load(path)
    if not on_gpu and options.threads:
        torch.set_num_threads(options.threads)
    stages = ScriptStages(bundle, device.device)
    device.settle()  # the weights were copied on another stream
    return complete(bundle, StagedBackend(name, precision, stages, device, sizes, padded=on_gpu))


def _load(path: Path, device: torch.device) -> Any:
    try:
        return torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
    except Exception as error:  # RuntimeError of many kinds
        raise BundleError(
            f"torch {torch.__version__} cannot load {path}: {error}; export the bundle again, or "
            "install the torch that constraints.txt names"
        ) from error
