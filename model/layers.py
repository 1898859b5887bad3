"""The convolution layer that neck and projector are made of."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Of a map at stride 4: inputs up to 4096 pixels a side, as the decoder's positions.
_LONGEST_SIDE = 1024


class ConvBNReLU(nn.Sequential):
    """Convolution without bias, batch normalisation, ReLU; the size stays.

    Its two parameterised parts are called `0` and `1`, as in the official CRIS checkpoints.
    """

    def __init__(self, inner: int, out: int, kernel: int) -> None:
        conv = nn.Conv2d(inner, out, kernel, padding=kernel // 2, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(conv, nn.BatchNorm2d(out), nn.ReLU())


class SentenceBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of (B, C) sentences that also trains at batch 1.

    One row has no batch statistics (torch raises, and so did CRIS on one image per GPU); it is
    normalised by the running ones.
    """

    def forward(self, input: Tensor) -> Tensor:
        if self.training and input.shape[0] == 1:
            return F.batch_norm(
                input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
            )
        return super().forward(input)


@contextmanager
def running_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, batch norms of `module` normalise by their running statistics, also in training.

    For one image of 32 x 32 pixels, whose stride-32 map is one value a channel: that has no batch
    statistics, and torch raises. Norms that take their statistics over several processes keep
    doing so: they have more than one value, and the other processes would wait for them.
    """
    norms = [
        part
        for part in module.modules()
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and not hasattr(part, "process_group")
    ]
    modes = [norm.training for norm in norms]
    for norm in norms:
        norm.training = False
    try:
        yield
    finally:
        for norm, mode in zip(norms, modes, strict=True):
            norm.training = mode


class Coordinates(nn.Module):
    """Two channels more, x and y of each pixel from -1 to 1: (B, C, H, W) -> (B, C + 2, H, W).

    H and W are at least 2. The steps are a buffer, because what is made on the spot is made on a
    device, and a traced graph would name that device for ever.
    """

    steps: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.arange(_LONGEST_SIDE).float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, _, height, width = x.shape
        across = (self.steps[:width] * (2 / (width - 1)) - 1).type_as(x)
        down = (self.steps[:height] * (2 / (height - 1)) - 1).type_as(x)
        across = across.view(1, 1, 1, width).expand(batch, 1, height, width)
        down = down.view(1, 1, height, 1).expand(batch, 1, height, width)
        return torch.cat((x, across, down), dim=1)
