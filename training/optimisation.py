"""How a run's weights move: parameter groups, the learning-rate schedule, averaged weights."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from model.segvlm import SegVLM

from .config import OptimSection
from .vocabulary import RATE, VocabularyHead


@dataclass(frozen=True)
class Schedule:
    """The factor on the base learning rates at every step of a run.

    steps: of the whole run. milestones: steps at which the "step" schedule multiplies by `decay`.
    """

    optim: OptimSection
    steps: int
    milestones: tuple[int, ...]

    @classmethod
    def of(cls, optim: OptimSection, units: int, batch: int) -> Schedule:
        """The schedule of a run, whose epochs may end in the middle of a batch.

        Args:
            units: what an epoch passes over. batch: how many of them a step learns from.
        """
        if optim.epochs is None:
            assert optim.steps is not None
            return cls(optim, optim.steps, tuple(round(at) for at in optim.milestones))

        def step_at(epoch: float) -> int:
            return math.ceil(epoch * units / batch)  # in this order: exact for whole epochs

        return cls(optim, step_at(optim.epochs), tuple(map(step_at, optim.milestones)))

    def factor(self, step: int) -> float:
        """Warm-up from nothing, then the schedule to the end of the run."""
        optim = self.optim
        if step < optim.warmup_steps:
            return (step + 1) / optim.warmup_steps
        share = (step - optim.warmup_steps) / max(1, self.steps - optim.warmup_steps)
        if optim.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * share))
        if optim.schedule == "poly":
            return float((1 - share) ** optim.power)
        if optim.schedule == "step":
            return float(optim.decay ** bisect.bisect_right(self.milestones, step))
        return 1.0


def parameter_groups(model: SegVLM, optim: OptimSection) -> list[dict[str, Any]]:
    """Backbone and head, each with and without weight decay (biases and norms have none).

    The backbone is what comes pre-trained: the image encoder, and CLIP's text encoder with it. Its
    rate is `backbone_lr_factor` of the head's from the first step.
    """
    from_clip = model.config.image_encoder.startswith("clip")
    backbone = ("image_encoder.", "text_encoder.") if from_clip else ("image_encoder.",)
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((name.startswith(backbone), parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": parameters,
            "name": "backbone" if in_backbone else "head",
            "base_lr": optim.lr * (optim.backbone_lr_factor if in_backbone else 1.0),
            "weight_decay": optim.weight_decay if decays else 0.0,
        }
        for (in_backbone, decays), parameters in groups.items()
    ]


def freeze(model: SegVLM, beginnings: Sequence[str]) -> list[nn.Module]:
    """Take the gradient from the parts whose names begin so; the modules to hold in evaluation.

    Raises:
        ValueError: if a beginning names nothing of the network.
    """
    for beginning in beginnings:
        named = [each for name, each in model.named_parameters() if name.startswith(beginning)]
        if not named:
            parts = ", ".join(f"{name}." for name, _ in model.named_children())
            raise ValueError(f"model.frozen: no part begins with {beginning!r}; there are {parts}")
        for parameter in named:
            parameter.requires_grad_(False)
    return [
        module for name, module in model.named_modules() if f"{name}.".startswith(tuple(beginnings))
    ]


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """Every batch norm of the network, those over several processes too."""
    return [part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]


def build_optimizer(
    model: SegVLM,
    optim: OptimSection,
    device: torch.device,
    vocabulary: VocabularyHead | None = None,
) -> torch.optim.Optimizer:
    """Adam or AdamW over `parameter_groups` and the vocabulary; one kernel a step on a GPU."""
    kind = torch.optim.AdamW if optim.optimizer == "adamw" else torch.optim.Adam
    fused = device.type == "cuda"
    groups = parameter_groups(model, optim)
    if vocabulary is not None:
        groups.append(
            {
                "params": list(vocabulary.parameters()),
                "name": "vocabulary",
                "base_lr": RATE * optim.lr,
                "weight_decay": 0.0,
            }
        )
    return kind(groups, lr=optim.lr, fused=fused)


def averaged(model: SegVLM, decay: float) -> AveragedModel | None:
    """The exponential moving average of weights and statistics; None where it is off."""
    if not decay:
        return None
    return AveragedModel(
        model,
        multi_avg_fn=get_ema_multi_avg_fn(decay),  # type: ignore[no-untyped-call]
        use_buffers=True,
    )
