"""Batch norms folded into the layers before them, for running a trained network fast.

In evaluation y = (x - mean) / sqrt(var + eps) * gain + shift is one scale and one shift a channel;
where x is the output of a convolution or linear layer, its weights can take both.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, TypeVar

import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from .deformable import DeformableConv2d
from .segvlm import SegVLM

Module = TypeVar("Module", bound=nn.Module)
FOLDABLE = (nn.Conv2d, nn.Linear, DeformableConv2d)


def fold_batch_norms(model: SegVLM) -> SegVLM:
    """A copy of `model` in evaluation mode, with every batch norm folded that can be.

    It answers the same to rounding, and has other parameters: no checkpoint fits it.
    """
    return fold_module(model, *_small_inputs(model))


def foldable_pairs(model: SegVLM) -> list[tuple[str, str]]:
    """The names of each layer and the batch norm that `fold_batch_norms` folds into it."""
    names = {part: name for name, part in model.named_modules()}
    was_training = model.training
    try:
        pairs = _pairs(model.eval(), _small_inputs(model))
    finally:
        model.train(was_training)
    return [(names[layer], names[norm]) for layer, norm in pairs]


def _small_inputs(model: SegVLM) -> tuple[Tensor, Tensor]:
    device = model.mean.device
    image = torch.zeros(1, 64, 64, 3, dtype=torch.uint8, device=device)
    tokens = torch.ones(1, model.config.word_length, dtype=torch.int64, device=device)
    return image, tokens


def fold_module(module: Module, *inputs: Tensor) -> Module:
    """The same of any module that can be called with `inputs`.

    Folded is each batch norm whose input is the output of one convolution or linear layer that
    nothing else reads; found by watching `inputs` go through. A batch norm of anything else, of a
    product with the sentence for instance, stays.
    """
    folded = copy.deepcopy(module).eval()
    for layer, norm in _pairs(folded, inputs):
        _fold(layer, norm)
        _replace(folded, norm, norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity())
    return folded


class _Watch(TorchFunctionMode):
    """Counts how often each tensor that a layer gave is read by a torch function."""

    def __init__(self) -> None:
        super().__init__()
        self.given: dict[int, tuple[Tensor, nn.Module]] = {}
        """By identity the output, kept alive so that its identity stays its own, and its layer."""
        self.reads: Counter[int] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if _tensors(result):  # asking for a shape reads no values
            self.reads.update(
                id(value)
                for value in _tensors((args, tuple(kwargs.values())))
                if id(value) in self.given
            )
        return result


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in _tensors(part)]
    return []


@torch.no_grad()
def _pairs(model: nn.Module, inputs: tuple[Tensor, ...]) -> list[tuple[nn.Module, _BatchNorm]]:
    """Each foldable layer with the batch norm that alone reads what it gives."""
    watch = _Watch()
    calls: Counter[nn.Module] = Counter()
    met: list[tuple[int, nn.Module, _BatchNorm]] = []

    def gave(module: nn.Module, _: Any, output: Tensor) -> None:
        calls[module] += 1
        watch.given[id(output)] = (output, module)

    def reads(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(module, _BatchNorm)
        calls[module] += 1
        if id(inputs[0]) in watch.given:
            met.append((id(inputs[0]), watch.given[id(inputs[0])][1], module))

    handles = [
        module.register_forward_hook(gave)
        if isinstance(module, FOLDABLE)
        else module.register_forward_pre_hook(reads)
        for module in model.modules()
        if isinstance(module, (*FOLDABLE, _BatchNorm))
    ]
    try:
        with watch:
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    # A layer that is called twice would be folded twice, one that others read too would change.
    return [
        (layer, norm)
        for output, layer, norm in met
        if calls[layer] == calls[norm] == 1 and watch.reads[output] == 1
    ]


@torch.no_grad()
def _fold(layer: nn.Module, norm: _BatchNorm) -> None:
    """Give `layer` the scale and the shift of `norm`; computed in float64."""
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, nn.Parameter)
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.double()
    if isinstance(bias, Tensor):
        shift = shift + bias.double() * scale
    column = scale.view(-1, *[1] * (weight.dim() - 1))
    layer.weight = nn.Parameter((weight.double() * column).to(weight.dtype))
    layer.bias = nn.Parameter(shift.to(weight.dtype))


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in model.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)
