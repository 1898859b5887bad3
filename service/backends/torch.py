"""The network itself in PyTorch: the bundle's weights in float32, bfloat16 or float16.

On a GPU every stage and batch size is one CUDA graph. Weights and images are channels_last, batch
norms are folded into the convolutions before them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from model import checkpoint
from model.bundle import WEIGHTS_FILE, Bundle, BundleError
from model.deformable import DeformableConv2d
from model.folding import fold_batch_norms
from model.layers import Coordinates
from model.probe import EXPRESSIONS, TOLERANCES, Probe, draw_images
from model.segvlm import SegVLM
from model.tokenizer import clip_tokenizer
from service.backends.base import LoadedModel, LoadOptions, ModelSpec, PendingLogits, Precision
from service.backends.load_options import (
    DeviceKind,
    batch_sizes,
    device_choice,
    supported_precision,
)
from service.backends.loaded_model import complete
from service.backends.torch_compilation import CompiledStages
from service.backends.torch_device import TorchDevice, find_device
from service.backends.torch_graphs import GraphedStages
from service.backends.torch_stages import StagedBackend, TensorStages

_KINDS: tuple[DeviceKind, ...] = ("cpu", "cuda")
LARGEST_BATCH = {"cpu": 8, "cuda": 32}
"""Unless the options say otherwise."""
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class NetworkStages:
    """The three stages of a SegVLM in one precision, run eagerly."""

    def __init__(self, model: SegVLM, dtype: torch.dtype, device: torch.device) -> None:
        """Takes `model` over, in evaluation mode."""
        model = fold_batch_norms(model)
        # Pixels are normalised in float32: the difference to the mean has more bits than bfloat16.
        self._mean, self._std = model.mean.to(device), model.std.to(device)
        convert(model, dtype)
        self._model = model.to(device).to(memory_format=torch.channels_last)
        self._dtype = dtype

    def encode_image(self, image: Tensor) -> Sequence[Tensor]:
        # A batch of bytes is channels_last in memory already; this only names the axes.
        normalized = (image.permute(0, 3, 1, 2).float() - self._mean) / self._std
        pyramid = self._model.image_encoder(normalized.to(self._dtype))
        levels: Sequence[Tensor] = self._model.neck.project(*pyramid)
        return levels

    def encode_text(self, tokens: Tensor) -> Sequence[Tensor]:
        text: Sequence[Tensor] = self._model.encode_text(tokens)
        return text

    def decode(self, *features: Tensor) -> Tensor:
        logits: Tensor = self._model.decode(*features)
        return logits.float()

    def release_memory(self) -> None:
        pass


def convert(model: nn.Module, dtype: torch.dtype) -> None:
    """Change every part to `dtype`, but for what counts pixels, which stays in float32.

    A deformable convolution in half precision would sample up to a sixteenth of a pixel beside its
    place, and torchvision has no bfloat16 kernel of it (on the CPU no float16 one either).
    `Coordinates` count past 256, where bfloat16 leaves out numbers. Both answer in the type of
    their input.
    """
    exact = [
        (parent, name, part)
        for parent in model.modules()
        for name, part in parent.named_children()
        if isinstance(part, DeformableConv2d | Coordinates)
    ]
    for parent, name, _ in exact:
        setattr(parent, name, nn.Identity())
    model.to(dtype)
    for parent, name, part in exact:
        setattr(parent, name, part)


def load_torch(path: Path, options: LoadOptions) -> LoadedModel:
    """Load and verify the bundle at `path`, with the weights that it holds.

    Raises BundleError that says what is wrong with the bundle, ValueError with the options.
    """
    plan = _plan(options)
    bundle = Bundle.load(path)
    return complete(bundle, _backend(_read_network(bundle), bundle.probe(), plan))


def load_network(model: SegVLM, options: LoadOptions) -> LoadedModel:
    """The same of a network at hand, for measurements; it asks itself for its probe's answer.

    Raises ValueError for options that do not fit.
    """
    plan, config = _plan(options), model.config
    tokenizer, images = clip_tokenizer(), draw_images(config.image_size)
    tokens = tokenizer.encode(EXPRESSIONS, config.word_length).tokens
    with torch.inference_mode():
        logits = model.eval()(torch.from_numpy(images), torch.from_numpy(tokens))
    probe = Probe(images, tokens, logits.numpy())
    spec = ModelSpec(config.preset, "0", config.image_size, config.word_length, threshold=0.5)
    return LoadedModel(spec, _backend(model, probe, plan), tokenizer, probe)


class _Plan(NamedTuple):
    """`LoadOptions` after everything was chosen."""

    device: TorchDevice
    precision: Precision
    batch_sizes: tuple[int, ...]
    threads: int
    compile: bool


def _plan(options: LoadOptions) -> _Plan:
    """Raises ValueError for options that this backend or this machine cannot follow."""
    device = TorchDevice(find_device("torch", device_choice("torch", options.device, _KINDS)))
    kind, on_gpu = device.device.type, device.stream is not None
    automatic: Precision = "fp32"
    if on_gpu:  # bfloat16 came with Ampere
        ampere = torch.cuda.get_device_capability(device.device) >= (8, 0)
        automatic = "bf16" if ampere else "fp16"
    return _Plan(
        device,
        supported_precision(f"torch-{kind}", options.precision, tuple(DTYPES), automatic),
        batch_sizes(options, LARGEST_BATCH[kind], padded=on_gpu),
        options.threads,
        # On a CPU it takes minutes and gains a tenth.
        options.compile and on_gpu,
    )


def _backend(model: SegVLM, probe: Probe, plan: _Plan) -> StagedBackend:
    """Sets for the whole process what torch may do for speed."""
    device, on_gpu = plan.device, plan.device.stream is not None
    if plan.threads and not on_gpu:
        torch.set_num_threads(plan.threads)
    network = NetworkStages(model, DTYPES[plan.precision], device.device)
    device.settle()  # the weights were copied on another stream
    stages: TensorStages = CompiledStages(network) if plan.compile else network
    if on_gpu:
        stages = GraphedStages(stages)
        torch.backends.cudnn.benchmark = True  # shapes repeat
        choose_tf32(lambda: _difference(network, device, probe), plan.precision)
    name = f"torch-{device.device.type}"
    return StagedBackend(name, plan.precision, stages, device, plan.batch_sizes, padded=on_gpu)


def choose_tf32(difference: Callable[[], float], precision: Precision) -> None:
    """Let float32 products on CUDA round their factors to TF32, unless the model suffers.

    `difference` asks the model its probe. Half-precision models keep TF32 for the parts that stay
    in float32: it is no coarser than the rest.
    """
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    if precision == "fp32" and not difference() <= TOLERANCES["fp32"]:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False


def _difference(network: NetworkStages, device: TorchDevice, probe: Probe) -> float:
    """How far the network, run eagerly, is from its probe's answer."""

    def answer() -> PendingLogits:
        pyramid = network.encode_image(device.upload(probe.images))
        text = network.encode_text(device.upload(probe.tokens))
        return device.download(network.decode(*pyramid, *text))

    return probe.difference(device.run(answer)())


def _read_network(bundle: Bundle) -> SegVLM:
    """The network of the bundle's weights. Raises BundleError."""
    path = bundle.file(WEIGHTS_FILE)
    try:
        model = checkpoint.load(path)
    except ValueError as error:
        raise BundleError(f"bundle {bundle.path}: {error}") from error
    for name in ("preset", "image_size", "word_length", "mean", "std"):
        ours, theirs = getattr(model.config, name), getattr(bundle.config, name)
        if ours != theirs:
            raise BundleError(
                f"bundle {bundle.path}: {WEIGHTS_FILE} is of a model with {name} {ours}, "
                f"config.json says {theirs}; export the bundle again"
            )
    return model
