"""Parameters and floating-point operations of a configuration, without running it.

Operations are counted by torch's FlopCounterMode on meta tensors (shapes without numbers). A
multiply-add is 2. Counted are matrix products, convolutions and attention; for the deformable
convolution the product with its kernel, as for an ordinary one. Normalisation, activations,
interpolation and the deformable sampling are not. Attention counts its whole score matrix, masked
places included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import deform_conv2d

from model.config import SegVLMConfig
from model.segvlm import SegVLM, build_segvlm

PARTS = ("image_encoder", "text_encoder", "neck", "decoder", "projector")
"""The model's children, in the order of the data."""

assert deform_conv2d is not None  # importing it registers the operators below


@dataclass(frozen=True)
class Complexity:
    """What a configuration costs at its own input size.

    parameters: number of weights by part, frozen ones included.
    flops: operations by part for one image with one expression, batch 1.
    image_flops, text_flops, decode_flops: the same sum by stage. An image with n expressions
        costs image_flops + n * (text_flops + decode_flops).
    """

    image_size: int
    word_length: int
    parameters: Mapping[str, int]
    flops: Mapping[str, int]
    image_flops: int
    text_flops: int
    decode_flops: int

    @property
    def total_parameters(self) -> int:
        return sum(self.parameters.values())

    @property
    def total_flops(self) -> int:
        """Of one image with one expression."""
        return self.image_flops + self.text_flops + self.decode_flops

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, in single parameters and operations."""
        return {
            "image_size": self.image_size,
            "word_length": self.word_length,
            "parameters": {**self.parameters, "total": self.total_parameters},
            "flops": {**self.flops, "total": self.total_flops},
            "stages": {
                "encode_image": self.image_flops,
                "encode_text": self.text_flops,
                "decode": self.decode_flops,
            },
        }


@lru_cache(maxsize=32)
def measure_complexity(config: SegVLMConfig) -> Complexity:
    """Count the network that `config` describes, in evaluation mode."""
    model = network_on_meta(config).eval()
    images, tokens = _inputs(config, 1, 1, config.image_size)
    with torch.no_grad():
        pyramid, image = _counted(lambda: model.encode_image(images))
        text, words = _counted(lambda: model.encode_text(tokens))
        _, decode = _counted(lambda: model.decode(*pyramid, *text))
    backbone = _of_module(image, model.image_encoder)
    # What the image's stage has beside the backbone are the neck's lateral convolutions.
    laterals = image.get_total_flops() - backbone
    flops = {
        "image_encoder": backbone,
        "text_encoder": words.get_total_flops(),
        "neck": laterals + _of_module(decode, model.neck),
        "decoder": _of_module(decode, model.decoder),
        "projector": _of_module(decode, model.projector),
    }
    return Complexity(
        image_size=config.image_size,
        word_length=config.word_length,
        parameters={name: _parameters(model.get_submodule(name)) for name in PARTS},
        flops=flops,
        image_flops=image.get_total_flops(),
        text_flops=words.get_total_flops(),
        decode_flops=decode.get_total_flops(),
    )


def training_step_flops(
    config: SegVLMConfig, images: int, expressions: int, image_size: int | None = None
) -> int:
    """Operations of one training step, forward and backward; the loss and the optimiser apart.

    Args:
        images: encoded once each. expressions: spread over the images, at least one each.
        image_size: input side in pixels; None for the configuration's own.
    """
    if expressions < images:
        raise ValueError(f"{images} images need as many expressions or more, not {expressions}")
    model = network_on_meta(config).train()
    pixels, tokens = _inputs(config, images, expressions, image_size or config.image_size)
    index = torch.zeros(expressions, dtype=torch.int64, device="meta")

    def step() -> Tensor:
        p3, p4, p5 = (level[index] for level in model.encode_image(pixels))
        logits = model.decode(p3, p4, p5, *model.encode_text(tokens))
        logits.sum().backward()  # type: ignore[no-untyped-call]
        return logits

    return count_flops(step)


def count_flops(run: Callable[[], Any]) -> int:
    """Operations of whatever `run` does, by the same rules; on meta tensors it costs nothing."""
    return int(_counted(run)[1].get_total_flops())


def network_on_meta(config: SegVLMConfig) -> SegVLM:
    """Shapes without numbers, which takes no memory at any size."""
    with torch.device("meta"):
        return build_segvlm(config)


def _inputs(
    config: SegVLMConfig, images: int, expressions: int, image_size: int
) -> tuple[Tensor, Tensor]:
    side = image_size
    pixels = torch.empty(images, side, side, 3, dtype=torch.uint8, device="meta")
    tokens = torch.empty(expressions, config.word_length, dtype=torch.int64, device="meta")
    return pixels, tokens


def _parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _counted(run: Callable[[], Any]) -> tuple[Any, FlopCounterMode]:
    operators = torch.ops.torchvision
    formulas: dict[Any, Any] = {
        operators.deform_conv2d: _deformable_forward,
        operators._deform_conv2d_backward: _deformable_backward,
        # torch's own formula takes a depthwise convolution's backward for a dense one's.
        torch.ops.aten.convolution_backward: _convolution_backward,
    }
    counter = FlopCounterMode(display=False, custom_mapping=formulas)
    with counter:
        answer = run()
    return answer, counter


def _of_module(counter: FlopCounterMode, module: torch.nn.Module) -> int:
    """Operations inside a module that was called at the top, which is counted by its class."""
    return int(sum(counter.get_flop_counts()[type(module).__name__].values()))


def _convolution_flops(out_shape: Sequence[int], weight_shape: Sequence[int]) -> int:
    """2 * values of the output * (in / groups) * kernel."""
    return 2 * math.prod(out_shape) * math.prod(weight_shape[1:])


def _convolution_backward(
    grad_shape: Sequence[int],
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    *rest: Any,
    out_shape: Any,
) -> int:
    """The gradients of input and weight, where asked for: one product of forward's size each."""
    transposed, wanted = rest[-4], rest[-1]
    assert not transposed, "the networks here hold no transposed convolution"
    return int(sum(wanted[:2])) * _convolution_flops(grad_shape, weight_shape)


def _deformable_forward(
    x_shape: Sequence[int], weight_shape: Sequence[int], *_: Any, out_shape: Any = None, **__: Any
) -> int:
    """As an ordinary convolution."""
    return _convolution_flops(out_shape, weight_shape)


def _deformable_backward(
    grad_shape: Sequence[int],
    x_shape: Sequence[int],
    weight_shape: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    """The gradient of the samples and that of the weight, one product of forward's size each."""
    return 2 * _convolution_flops(grad_shape, weight_shape)
