"""What each part of an update costs by itself: where a step's time goes, and what it reaches.

Every part of the network runs forward and backward alone on the inputs that it has inside; so do
the loss, the optimiser and the averaging. The parts are timed as they are written, not compiled.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from model.segvlm import SegVLM

from .complexity import count_flops, network_on_meta
from .data.dataset import Batch
from .learner import Learner
from .losses import raf_loss

Seconds = Callable[[Callable[[], object]], float]
"""Runs something and answers its seconds, to the end of what it started on the device."""

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
_PARTS = (
    *("neck.lateral3", "neck.lateral4", "neck.lateral5", "text_encoder", "neck", "decoder"),
    *("projector", "projector.enhancement.spatial", "projector.conv", "projector.dynamic"),
)


@dataclass(frozen=True)
class PartTime:
    """A part's forward and backward pass.

    part: its name in the network; "neck" is without its laterals, which run once an image; the
        time of "projector.conv" is in that of "projector" already.
    milliseconds: the median. flops: counted; None for what has no matrix products.
    """

    part: str
    milliseconds: float
    flops: int | None

    def share_of(self, peak: float) -> float | None:
        """Of `peak` operations a second, what the part reached; None where nothing is counted."""
        return None if self.flops is None else 1e3 * self.flops / self.milliseconds / peak


def part_times(
    learner: Learner, batch: Batch, seconds: Seconds, repeats: int = 5
) -> list[PartTime]:
    """Time the parts of `learner`'s update on `batch`, in the order in which they run.

    Leaves gradients behind, and the weights a few optimiser steps further.
    """
    device, kind = learner.processes.device, _AUTOCAST[learner.config.optim.precision]
    learner.model.train()
    on_device = Batch(*(part.to(device) for part in batch))
    kinds = partial(torch.autocast, device.type, kind, enabled=kind is not None)
    inputs, logits = _inputs_of_parts(learner.model, on_device, kinds())
    meta = network_on_meta(learner.model.config).train()
    rows: list[PartTime] = []

    def timed(name: str, run: Callable[[], object], flops: int | None) -> None:
        times = [seconds(run) for _ in range(repeats + 1)]
        rows.append(PartTime(name, 1e3 * statistics.median(times[1:]), flops))

    for name, arguments in inputs.items():
        ghosts = [_ghost(each) for each in arguments]
        ghost = meta.get_submodule(name)
        flops = count_flops(partial(_forth_and_back, ghost, ghosts, nullcontext()))
        part = learner.model.get_submodule(name)
        timed(name, partial(_forth_and_back, part, arguments, kinds()), flops)
    answered, targets = _leaf(logits), on_device.targets

    def loss() -> None:
        raf_loss(answered, targets, learner.config.loss).total.backward()  # type: ignore[no-untyped-call]

    timed("loss", loss, None)
    timed("optimiser", learner.optimizer.step, None)
    if learner.average is not None:
        timed("averaging", partial(learner.average.update_parameters, learner.model), None)
    return rows


def part_table(parts: Sequence[PartTime], peak: float) -> str:
    """The parts as Markdown; `peak`: operations a second of a large matrix product."""
    lines = ["| part, forward and backward | ms | GFLOP | of the peak |", "|---|--:|--:|--:|"]
    for row in parts:
        gflop = "" if row.flops is None else f"{row.flops / 1e9:.1f}"
        share = row.share_of(peak)
        reached = "" if share is None else f"{share:.1%}"
        lines.append(f"| {row.part} | {row.milliseconds:.2f} | {gflop} | {reached} |")
    return "\n".join(lines) + "\n"


def _inputs_of_parts(
    model: SegVLM, batch: Batch, kinds: AbstractContextManager[Any]
) -> tuple[dict[str, list[Tensor]], Tensor]:
    """What each part is called with, detached; and the logits."""
    backbone = [f"image_encoder.{name}" for name, _ in model.image_encoder.named_children()]
    names = ["image_encoder", *backbone, *_PARTS]
    seen: dict[str, list[Tensor]] = {}

    def remember(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda _, arguments: seen.update({name: [_leaf(each) for each in arguments]})

    hooks = [model.get_submodule(n).register_forward_pre_hook(remember(n)) for n in names]
    try:
        with torch.no_grad(), kinds:
            p3, p4, p5 = (level[batch.image_index] for level in model.encode_image(batch.images))
            logits = model.decode(p3, p4, p5, *model.encode_text(batch.tokens))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: seen[name] for name in names if name in seen}, logits


def _leaf(tensor: Tensor) -> Tensor:
    """Detached; with a gradient unless it is a photo's pixels or integers."""
    pixels = tensor.ndim == 4 and tensor.shape[1] == 3
    return tensor.detach().requires_grad_(tensor.is_floating_point() and not pixels)


def _ghost(tensor: Tensor) -> Tensor:
    """Its shape, contiguous: torch's convolutions on meta tensors know no other layout."""
    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    return empty.requires_grad_(tensor.requires_grad)


def _forth_and_back(
    part: nn.Module, arguments: Sequence[Tensor], kinds: AbstractContextManager[Any]
) -> None:
    with kinds:
        answer = part(*arguments)
    answers = answer if isinstance(answer, tuple | list) else (answer,)
    flowing = [each for each in answers if each.requires_grad]
    torch.autograd.backward(flowing, [torch.ones_like(each) for each in flowing])
