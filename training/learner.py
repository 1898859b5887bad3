"""One update of the weights: forward, loss, backward, step; the same on one process or many.

The loss is the mean over all phrases of the global batch, however they are shared out among
processes and micro-batches: each part counts by its number of phrases. Dropout is seeded from
(seed, step, part), so an update depends on nothing that happened before but the weights.

Nothing here waits for a GPU. Whether loss and gradients were finite is read one update late, when
the GPU has long computed them; the batches that made them are kept until then.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.segvlm import SegVLM

from .config import TrainConfig
from .data.dataset import Batch
from .distributed import Processes, synchronise_batch_norm
from .losses import RafTerms
from .object_losses import roles_of
from .optimisation import Schedule, averaged, batch_norms, build_optimizer, freeze
from .training_forward import (
    EVERY_CLASS_MAP,
    ObjectTerms,
    TrainingForward,
    all_terms,
    class_maps_to_ask,
)
from .vocabulary import VocabularyHead

_AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Update:
    """What an update did in this process; tensors on its device, not yet read.

    terms: this process's part of the loss terms, so that the processes' parts add up to the loss
    of the global batch. gradient_norm: over the network, before clipping. iou: summed over this
    process's phrases, at the resolution of the targets. phrases, images: of this process.
    """

    terms: RafTerms
    object_terms: ObjectTerms
    gradient_norm: Tensor
    iou: Tensor
    phrases: int
    images: int


class Faults(NamedTuple):
    """What went wrong in an update, for all processes to hear of.

    loss: this process's first batch whose loss was not finite. gradients: whether those of all
    processes together were not finite; fp16's scaler skips such steps, there it is no fault.
    batches: all of this process's part of the update.
    """

    loss: Batch | None
    gradients: bool
    batches: tuple[Batch, ...]


class Learner:
    """The network with all that moves its weights.

    names: class names that the stores know, for `objects.vocabulary_weight`.
    skipped: updates that fp16's scaler left out since the run began, on the device.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: SegVLM,
        schedule: Schedule,
        processes: Processes,
        names: int = 0,
    ) -> None:
        self.config, self.schedule, self.processes = config, schedule, processes
        optim, device = config.optim, processes.device
        layout = torch.channels_last if optim.channels_last else torch.contiguous_format
        self.model = model.to(device).to(memory_format=layout)
        synchronise_batch_norm(self.model, processes)
        self._frozen = freeze(self.model, config.model.frozen)
        if config.model.frozen_statistics:
            self._frozen += batch_norms(self.model)
        self.average = averaged(self.model, optim.ema_decay)
        self.vocabulary = None
        if config.objects.vocabulary_weight:
            self.vocabulary = VocabularyHead(model.config, names).to(device)
            synchronise_batch_norm(self.vocabulary, processes)
        self.optimizer = build_optimizer(self.model, optim, device, self.vocabulary)
        self.scaler = torch.amp.GradScaler(device.type, enabled=optim.precision == "fp16")
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._forward = self._wrapped()
        self._losses: list[tuple[_LateFlag, Batch]] = []
        self._gradients: _LateFlag | None = None

    def _wrapped(self) -> nn.Module:
        apart = self.config.objects.class_apart
        forward: nn.Module = TrainingForward(self.model, apart, self.vocabulary)
        if self.config.optim.compile:
            forward.compile()
        if self.processes.world > 1:
            device = self.processes.device
            forward = DistributedDataParallel(
                forward,
                device_ids=[device.index] if device.type == "cuda" else None,
                broadcast_buffers=False,  # synchronised batch norm keeps them equal
                gradient_as_bucket_view=True,
            )
        return forward

    @property
    def answering(self) -> SegVLM:
        """The network to validate and to keep: the averaged one where there is one."""
        model = self.model if self.average is None else self.average.module
        assert isinstance(model, SegVLM)
        return model

    def update(self, step: int, micro_batches: Sequence[Batch], global_phrases: int) -> Update:
        """Learn from this process's part of the global batch `step`."""
        factor = self.schedule.factor(step)
        for group in self.optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.model.train()
        for part in self._frozen:
            part.eval()
        self.optimizer.zero_grad(set_to_none=True)
        count = len(RafTerms._fields) + len(ObjectTerms._fields) + 1
        totals = torch.zeros(count, device=self.processes.device)
        for number, batch in enumerate(micro_batches):
            last = number == len(micro_batches) - 1
            self._seed_dropout(step, number)
            with nullcontext() if last else self._without_exchange():
                totals += self._learn(batch, len(batch.tokens) / global_phrases)
        self.scaler.unscale_(self.optimizer)
        norm = self._clipped_norm()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update_parameters(self.model)
        return Update(
            terms=RafTerms(*totals[:4]),
            object_terms=ObjectTerms(*totals[4:-1]),
            gradient_norm=norm,
            iou=totals[-1],
            phrases=sum(len(batch.tokens) for batch in micro_batches),
            images=sum(len(batch.images) for batch in micro_batches),
        )

    def _clipped_norm(self) -> Tensor:
        """Clip the gradients where that is asked for; their norm before, and a note if infinite."""
        parameters = [each for each in self.model.parameters() if each.grad is not None]
        norm = nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
        if self.config.optim.clip_norm:
            nn.utils.clip_grads_with_norm_(parameters, self.config.optim.clip_norm, norm)
        finite = torch.isfinite(norm)
        if self.scaler.is_enabled():
            self.skipped += ~finite
        else:
            self._gradients = _LateFlag(finite)
        return norm

    def _learn(self, batch: Batch, share: float) -> Tensor:
        """Gradients of a micro-batch; its part of the loss terms and the sum of its IoUs."""
        device = self.processes.device
        batch = Batch(*(item.to(device, non_blocking=True) for item in batch))
        kind = _AUTOCAST[self.config.optim.precision]
        roles, asked = None, EVERY_CLASS_MAP
        if self.config.objects.enabled:
            roles = roles_of(batch.objects, batch.roles, batch.image_index)
            asked = class_maps_to_ask(batch, roles, self.config.objects)
        with torch.autocast(device.type, kind, enabled=kind is not None):
            answers = self._forward(batch.images, batch.tokens, batch.image_index, *asked)
        terms, extra = all_terms(answers, batch, roles, self.config)
        self._losses.append((_LateFlag(torch.isfinite(terms.total.detach())), batch))
        # Processes' gradients are averaged, their parts of the loss are summed.
        self.scaler.scale(terms.total * (share * self.processes.world)).backward()  # type: ignore[no-untyped-call]
        parts = [term.detach() * share for term in (*terms, *extra)]
        logits = answers.decoded.logits.detach()
        return torch.stack([*parts, _summed_iou(logits, batch.targets, self.config)])

    def faults(self) -> Faults:
        """What was not finite since the last call; to be asked between two updates."""
        losses, self._losses = self._losses, []
        gradients, self._gradients = self._gradients, None
        return Faults(
            loss=next((batch for finite, batch in losses if not finite.read()), None),
            gradients=gradients is not None and not gradients.read(),
            batches=tuple(batch for _, batch in losses),
        )

    def _without_exchange(self) -> AbstractContextManager[Any]:
        if isinstance(self._forward, DistributedDataParallel):
            return self._forward.no_sync()
        return nullcontext()

    def _seed_dropout(self, step: int, micro: int) -> None:
        place = (self.config.run.seed, step, micro, self.processes.rank)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0]))

    def state(self) -> dict[str, Any]:
        """Weights, averaged weights, optimiser, scaler and what it skipped, vocabulary."""
        return {
            "model": self.model.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "skipped": int(self.skipped),
            "vocabulary": None if self.vocabulary is None else self.vocabulary.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Go on from what `state()` answered under the same configuration."""
        self.model.load_state_dict(state["model"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.skipped.fill_(state["skipped"])
        if self.vocabulary is not None:
            self.vocabulary.load_state_dict(state["vocabulary"])


def _summed_iou(logits: Tensor, targets: Tensor, config: TrainConfig) -> Tensor:
    """Sum over the phrases of the IoU at the targets' own resolution."""
    threshold = config.run.threshold
    answered = logits > math.log(threshold / (1 - threshold))
    wanted = targets > 0.5
    intersection = (answered & wanted).sum((1, 2))
    union = (answered | wanted).sum((1, 2))
    return (intersection / union.clamp(min=1)).sum()


class _LateFlag:
    """A boolean of the GPU, on its way to the CPU while the GPU goes on."""

    def __init__(self, flag: Tensor) -> None:
        self._event = torch.cuda.Event() if flag.is_cuda else None  # type: ignore[no-untyped-call]
        if self._event is None:
            self._flag = flag
        else:
            self._flag = torch.empty_like(flag, device="cpu", pin_memory=True)
            self._flag.copy_(flag, non_blocking=True)
            self._event.record()

    def read(self) -> bool:
        """Its value, after waiting for the GPU to have come so far."""
        if self._event is not None:
            self._event.synchronize()
        return bool(self._flag)
