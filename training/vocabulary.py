"""Naming what every place shows: all classes told apart at once. Training only, not in the paper.

A class map learns a class where a phrase asks for it, a few phrases a photo. Here every annotated
place of the photo is to be told from every class that the stores know. The head that names them
belongs to the run; the network is the same without it.

I = images, C = names, K = objects of an image, h, w = S/16, H, W = S/4.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.config import SegVLMConfig
from model.neck import upsample
from model.objects import GEOMETRY

NAMELESS = -1
RATE = 10 / 3
"""Of the network's learning rate: the head starts from nothing and ends with the run."""


class VocabularyHead(nn.Module):
    """A score for each class name at each place of stride 16."""

    def __init__(self, config: SegVLMConfig, names: int) -> None:
        super().__init__()
        width = config.neck_widths[1] + config.neck_widths[2]
        self.norm = nn.BatchNorm2d(width)
        self.scores = nn.Conv2d(width, names, 1)

    def forward(self, p4: Tensor, p5: Tensor) -> Tensor:
        """p4, p5: of the image's stage, with a selection's cues -> logits (I, C, h, w)."""
        scores: Tensor = self.scores(self.norm(torch.cat((p4[:, :-GEOMETRY], upsample(p5)), dim=1)))
        return scores


def vocabulary_loss(scores: Tensor, objects: Tensor, names: Tensor) -> Tensor:
    """Mean cross-entropy over the places that show one object, whose name is known.

    Every object counts by the root of its places, so that large ones do not decide everything.
    0 where no place does.

    Args:
        scores: (I, C, h, w) logits. objects: int64 (I, H, W), the number of the object at each
            cell, 0 where there is none. names: int64 (I, K + 1), the name of each object by its
            number, `NAMELESS` for 0.
    """
    step = objects.shape[1] // scores.shape[2]
    first, second = (
        objects[:, start::step, start::step].flatten(1) for start in (step // 2 - 1, step // 2)
    )
    name = names.gather(1, second)  # (I, h * w)
    shown = (first == second) & (name != NAMELESS)
    area = torch.zeros_like(names, dtype=torch.float32)
    area.scatter_add_(1, second, torch.ones_like(second, dtype=torch.float32))
    weight = shown * area.gather(1, second).clamp(min=1).rsqrt()
    loss = F.cross_entropy(scores.flatten(2).float(), name.clamp(min=0), reduction="none")
    return (loss * weight).sum() / weight.sum().clamp(min=1e-6)
