"""SegVLM's three stages as modules of their own, which is what exporters take.

B = batch, S = input side, L = word length.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from model.bundle import STAGES as STAGE_NAMES
from model.segvlm import SegVLM
from training.onnx_graphs import PYRAMID, TEXT


class Stage(NamedTuple):
    """A stage's name in a bundle, its method of SegVLM, and the names of what goes in and out."""

    name: str
    method: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


STAGES = (
    Stage(STAGE_NAMES[0], "encode_image", ("image",), PYRAMID),
    Stage(STAGE_NAMES[1], "encode_text", ("tokens",), TEXT),
    Stage(STAGE_NAMES[2], "decode", (*PYRAMID, *TEXT), ("logits",)),
)


class StageModule(nn.Module):
    """One stage of `model`."""

    def __init__(self, model: SegVLM, method: str) -> None:
        super().__init__()
        self.model = model
        self.method = method

    def forward(self, *inputs: Tensor) -> Any:
        return getattr(self.model, self.method)(*inputs)


def stages_with_inputs(model: SegVLM) -> Iterator[tuple[Stage, StageModule, tuple[Tensor, ...]]]:
    """Each stage with an example of its inputs, a batch of two; `model` in evaluation mode."""
    config, device = model.config, model.mean.device
    # Two of everything: a batch of one would be taken for a constant.
    image = torch.zeros(2, config.image_size, config.image_size, 3, dtype=torch.uint8)
    tokens = torch.ones(2, config.word_length, dtype=torch.int64)
    values: dict[str, Tensor] = {"image": image.to(device), "tokens": tokens.to(device)}
    for stage in STAGES:
        module = StageModule(model, stage.method).eval()
        inputs = tuple(values[name] for name in stage.inputs)
        with torch.no_grad():
            outputs = module(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        values |= dict(zip(stage.outputs, outputs, strict=True))
        yield stage, module, inputs


def without_idle_parts(module: StageModule, inputs: tuple[Tensor, ...]) -> StageModule:
    """A copy of `module` that lacks the parts of the network which its stage never calls."""
    module = copy.deepcopy(module)
    called: set[nn.Module] = set()
    handles = [
        part.register_forward_pre_hook(lambda part, _: called.add(part))
        for part in module.modules()
    ]
    try:
        with torch.no_grad():
            module(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    _drop_idle(module, called)
    return module


def _drop_idle(module: nn.Module, called: set[nn.Module]) -> None:
    for name, child in module.named_children():
        if called.isdisjoint(child.modules()):
            setattr(module, name, nn.Identity())
        else:
            _drop_idle(child, called)
