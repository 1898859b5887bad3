"""Statistics for batch norms that have lost theirs.

A bundle's graphs have them folded into the layers before (`model.folding`), and `network_of` brings
such norms back as ones that only add: right answers, but not to be trained on. A norm that is
trained needs the mean and the spread of what it is given, which are measured on photos; and the
layer before needs weights of the size that its learning rate is meant for, where folding has left
gains. What the norm gives stays what it was.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from model.folding import foldable_pairs
from model.segvlm import SegVLM, build_segvlm

_DEAD = 1e-3  # of its layer's weights: a channel whose weights are smaller is left as it is


@torch.no_grad()
def measure_norms(network: SegVLM, batches: Iterable[tuple[Tensor, Tensor]]) -> list[str]:
    """Measure `network`'s batch norms that only add, in place; returns their names.

    Its answers stay the same to rounding. The weights before such a norm become, channel by
    channel, as large as those of a new network.

    Args:
        network: as `network_of` gives it.
        batches: images (B, S, S, 3) uint8 and tokens (B, L) int64, of the data to be trained on.

    Raises:
        ValueError: if there is a norm to measure and no batch.
    """
    parts = dict(network.named_modules())
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)  # of random weights, only their size is used
        new = dict(build_segvlm(network.config).named_modules())
    lost = [
        _Lost(name, parts[name], parts[layer], new[layer])
        for layer, name in foldable_pairs(network)
        if _only_adds(parts[name])
    ]
    if not lost:
        return []
    moments = [_Moments() for _ in lost]
    handles = [
        each.norm.register_forward_pre_hook(seen.add)
        for each, seen in zip(lost, moments, strict=True)
    ]
    count = 0
    try:
        network.eval()
        for images, tokens in batches:
            network(images, tokens)
            count += 1
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise ValueError("there is nothing to measure batch norms on; give at least one photo")
    for each, seen in zip(lost, moments, strict=True):
        _renew(each, *seen.mean_and_variance())
    return [each.name for each in lost]


class _Lost(NamedTuple):
    """A norm that only adds, the layer before it, and that layer in a new network."""

    name: str
    norm: nn.Module
    layer: nn.Module
    new: nn.Module


def _only_adds(norm: nn.Module) -> bool:
    assert isinstance(norm, _BatchNorm) and norm.running_mean is not None
    return not norm.running_mean.any() and bool((norm.weight == 1).all())


class _Moments:
    """Mean and variance of each channel over all that was added, in float64."""

    def __init__(self) -> None:
        self._count = 0
        self._sum: Tensor | float = 0.0
        self._squares: Tensor | float = 0.0

    def add(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        values = inputs[0].double().transpose(0, 1).flatten(1)  # (C, values of the channel)
        self._count += values.shape[1]
        self._sum = self._sum + values.sum(1)
        self._squares = self._squares + values.square().sum(1)

    def mean_and_variance(self) -> tuple[Tensor, Tensor]:
        mean = torch.as_tensor(self._sum) / self._count
        return mean, torch.as_tensor(self._squares) / self._count - mean.square()


def _renew(lost: _Lost, mean: Tensor, variance: Tensor) -> None:
    """Such that gain * (x * scale - mean) / sqrt(variance + eps) + shift is x + the old shift."""
    norm, layer = lost.norm, lost.layer
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None and norm.running_var is not None
    assert isinstance(layer.weight, Tensor) and isinstance(lost.new.weight, Tensor)
    sizes = layer.weight.flatten(1).square().mean(1).sqrt()
    wanted = lost.new.weight.square().mean().sqrt()
    scale = torch.where(sizes > _DEAD * sizes.max(), wanted / sizes, 1.0)
    layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
    if isinstance(layer.bias, Tensor):
        layer.bias.mul_(scale)
    spread = variance.clamp(min=0) * scale.double().square()
    norm.running_mean.copy_(mean * scale)
    norm.running_var.copy_(spread)
    norm.weight.copy_((spread + norm.eps).sqrt() / scale)
    norm.bias.add_(mean)
