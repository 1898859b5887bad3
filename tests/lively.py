"""A network of random weights under which everything matters, for tests of what is exported."""

from __future__ import annotations

import torch
from torch import nn

from model.config import SegVLMConfig
from model.deformable import DeformableConv2d
from model.segvlm import SegVLM, build_segvlm


def lively(config: SegVLMConfig) -> SegVLM:
    """In evaluation mode; deformable offsets and the statistics of batch norms are not zero."""
    torch.manual_seed(0)
    model = build_segvlm(config)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
            elif isinstance(module, DeformableConv2d):
                module.offset.bias.uniform_(-2, 2)
                module.offset.weight.normal_(std=0.01)
    return model.eval()
