"""Several processes that train one model: joining, agreeing, and synchronised batch norm.

`torchrun` starts the processes and tells each its place by the environment; without it there is one
process and everything here costs nothing. Tensors on GPUs travel by NCCL, everything else by gloo,
so that agreeing on a number never waits for a GPU.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Item = TypeVar("Item")

_TIMEOUT = timedelta(minutes=30)  # rank 0 may save a large state or draw while the others wait


@dataclass(frozen=True)
class Processes:
    """This process among those of the run."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """The one that writes files."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """The sum over all processes of a small CPU tensor, the same in each."""
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gather(self, item: Item) -> list[Item]:
        """Every process's item by rank, in every process."""
        if self.world == 1:
            return [item]
        items: list[Any] = [None] * self.world
        dist.all_gather_object(items, item)
        return items

    def share(self, item: Item) -> Item:
        """The main process's item, in every process."""
        if self.world == 1:
            return item
        items: list[Any] = [item]
        dist.broadcast_object_list(items)
        shared: Item = items[0]
        return shared

    def leave(self) -> None:
        """Take part no longer."""
        if self.world > 1:
            dist.destroy_process_group()


def pick_device() -> torch.device:
    """The first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def join() -> Processes:
    """Join the processes that `torchrun` started; alone where it did not.

    Raises:
        ValueError: if there are more processes on this machine than GPUs.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        return Processes(pick_device())
    device = torch.device("cpu")
    if torch.cuda.is_available():
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"torchrun started more processes than the {torch.cuda.device_count()} GPUs here; "
                "lower --nproc_per_node"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=_TIMEOUT)
    return Processes(device, dist.get_rank(), world)


def synchronise_batch_norm(model: nn.Module, processes: Processes) -> None:
    """Let every batch norm of `model` take its statistics over the batches of all processes.

    In place; names in the state dict stay. With GPUs it is torch's own, which has no CPU version.
    """
    if processes.world == 1:
        return
    if processes.device.type == "cuda":
        convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return
    for parent in list(model.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, _BatchNorm):
                setattr(parent, name, CpuSyncBatchNorm(norm))


class CpuSyncBatchNorm(_BatchNorm):
    """A batch norm that takes the place of `norm`, over all processes of the default group.

    Keeps the activation of timm's `BatchNormAct2d`. Where all processes together hold a single
    value for each channel it normalises by the running statistics, as
    `model.layers.SentenceBatchNorm` does alone.
    """

    process_group = None  # the default one; its presence tells what takes statistics over processes

    def __init__(self, norm: _BatchNorm) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum)
        for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"):
            setattr(self, name, getattr(norm, name))
        parts = (getattr(norm, name, None) for name in ("drop", "act"))
        self.after = nn.Sequential(*(part for part in parts if isinstance(part, nn.Module)))
        self.train(norm.training)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> the same, normalised for each channel."""
        if self.training:
            normal = self._by_batch(input)
        else:
            normal = self._by_running(input)
        answer: Tensor = self.after(normal)
        return answer

    def _by_running(self, input: Tensor) -> Tensor:
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )

    def _by_batch(self, input: Tensor) -> Tensor:
        axes = [0, *range(2, input.ndim)]
        shape = [1, -1] + [1] * (input.ndim - 2)
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        # Two passes: a mean of squares minus a square of means loses half of the digits.
        count = torch.tensor([input.numel() / input.shape[1]], dtype=values.dtype)
        dist.all_reduce(count)
        if count.item() <= 1:
            return self._by_running(input)
        mean = _SumOverProcesses.apply(values.sum(axes)) / count
        centred = values - mean.view(shape)
        variance = _SumOverProcesses.apply(centred.square().sum(axes)) / count
        self._remember(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * torch.rsqrt(variance + self.eps)
        normal: Tensor = centred * scale.view(shape) + self.bias.view(shape)
        return normal.to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked += 1

    def _check_input_dim(self, input: Tensor) -> None:
        """Any number of dimensions will do."""


class _SumOverProcesses(torch.autograd.Function):
    """y = sum over processes of x; its gradient is the sum over processes too."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total
