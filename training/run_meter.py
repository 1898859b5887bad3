"""What a run measures of itself between two lines of its log."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

import torch

from .distributed import Processes
from .learner import Learner, Update

Item = TypeVar("Item")


class Meter:
    """Time, waiting, and counts since the last row; validation does not count."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self.restart()

    def restart(self) -> None:
        """Begin a new row here."""
        self._started = time.perf_counter()
        self._waited = 0.0
        self._updates = self._images = self._phrases = 0

    def waiting(self, items: Iterable[Item]) -> Iterator[Item]:
        """The same items; the time until each comes is waiting for data."""
        iterator = iter(items)
        while True:
            asked = time.perf_counter()
            item = next(iterator, None)
            self._waited += time.perf_counter() - asked
            if item is None:
                return
            yield item

    def count(self, update: Update, phrases: int) -> None:
        """One more update, of this process's images and of `phrases` over all processes."""
        self._updates += 1
        self._images += update.images * self._processes.world
        self._phrases += phrases

    @property
    def device_name(self) -> str:
        """What this process computes on."""
        device = self._processes.device
        return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

    def row(self, update: Update, learner: Learner) -> dict[str, float]:
        """The numbers of one line, and a new beginning. Waits for the device.

        loss, its terms and iou are of the last global batch: iou is the mean over its phrases at
        the targets' resolution. gradient_norm: before clipping. skipped_steps: since the run began,
        those that fp16's scaler left out. gpu_memory_gib: the most that this process held.
        """
        device = self._processes.device
        extra = update.object_terms
        zero = torch.zeros_like(update.iou)
        terms = torch.stack([*update.terms, *extra, update.iou, zero]).cpu()
        terms[-1] = update.phrases
        total, bce, focal, dice, *of_objects, iou, phrases = self._processes.sum(terms).tolist()
        spent = time.perf_counter() - self._started
        row = {
            "loss": total,
            "bce": bce,
            "focal": focal,
            "dice": dice,
            "iou": iou / phrases,
            "gradient_norm": update.gradient_norm.item(),
            "loss_scale": learner.scaler.get_scale(),
            "skipped_steps": float(learner.skipped),
            "images_per_second": self._images / spent,
            "phrases_per_second": self._phrases / spent,
            "data_wait_share": self._waited / spent,
            "gpu_memory_gib": 0.0,
        }
        if learner.config.objects.enabled:
            row |= dict(zip(extra._fields, of_objects, strict=True))
        for group in learner.optimizer.param_groups:
            row[f"lr_{group['name']}"] = group["lr"]
        if device.type == "cuda":
            row["gpu_memory_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
            torch.cuda.reset_peak_memory_stats(device)
        self.restart()
        return row
