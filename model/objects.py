"""Where the object lies that a pixel belongs to: predicted from the image alone, for comparison.

Ours, not in the paper. Every place of the map predicts the centre and the size of its object, as
Panoptic-DeepLab (Cheng et al., 2020) regresses centres, whatever the object's class. Places that
predict the same object find each other by it, so that objects can be counted and compared without
a list of objects.

B = batch, S = input side; N, M = places of one map and of another. Lengths are shares of S.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .layers import ConvBNReLU

GEOMETRY = 5
"""Channels of a geometry map: centre x, centre y, log width, log height, log root of the area."""
_WIDTH = 96
_FINE_WIDTH = 48
_REACH = 0.35  # of an object's own sides: how far apart two predictions of its centre may lie
_SIZE_REACH = 0.5  # how far apart two predictions of its log size may lie
_CLEAR_DISTANCE, _DISTANCE_BLUR = 0.045, 0.012
_CLEAR_SIZE, _SIZE_BLUR = 0.16, 0.05  # of the log root of an area; 1.7 times the area is 0.27


class GeometryHead(nn.Module):
    """The backbone's features at three strides -> geometry maps at strides 8 and 16."""

    def __init__(self, channels: tuple[int, int, int]) -> None:
        super().__init__()
        c3, c4, c5 = channels
        self.from4 = nn.Conv2d(c4, _WIDTH, 1)
        self.from5 = nn.Conv2d(c5, _WIDTH, 1)
        self.mix = nn.Sequential(ConvBNReLU(_WIDTH, _WIDTH, 3), ConvBNReLU(_WIDTH, _WIDTH, 3))
        self.coarse = nn.Conv2d(_WIDTH, GEOMETRY, 1)
        self.from3 = nn.Conv2d(c3, _FINE_WIDTH, 1)
        self.down = nn.Conv2d(_WIDTH, _FINE_WIDTH, 1)
        self.mix_fine = ConvBNReLU(_FINE_WIDTH, _FINE_WIDTH, 3)
        self.fine = nn.Conv2d(_FINE_WIDTH, GEOMETRY, 1)
        for last in (self.coarse, self.fine):
            nn.init.normal_(last.weight, std=0.01)
            assert last.bias is not None
            nn.init.zeros_(last.bias)
            with torch.no_grad():
                last.bias[2:] = -1.6  # a fifth of the side

    def forward(self, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[Tensor, Tensor]:
        """-> (B, 5, S/8, S/8) and (B, 5, S/16, S/16), centres from 0 to 1 of the square."""
        x = self.mix(F.relu(self.from4(c4) + _twice(self.from5(c5))))
        fine = self.mix_fine(F.relu(self.from3(c3) + _twice(self.down(x))))
        return _absolute(self.fine(fine)), _absolute(self.coarse(x))


class Places(NamedTuple):
    """The places of a map and the objects that they predict, each (B, N)."""

    x: Tensor
    y: Tensor
    width: Tensor
    height: Tensor
    size: Tensor
    """Log of the square root of the object's area."""


def places(geometry: Tensor) -> Places:
    """A geometry map (B, 5, H, W), row by row; without gradient, see `SelectionHead`."""
    x, y, width, height, size = geometry.detach().flatten(2).unbind(1)
    return Places(x, y, _side(width), _side(height), size.clamp(-5.0, 0.5))


def belonging(of: Places, to: Places) -> Tensor:
    """How likely place j of `to` shows the object of place i of `of`: (B, N, M), 0 to 1.

    A Gaussian in the distance of the two predictions, as wide as i's object asks for. Written as
    one matrix product, |a - b|^2 = a^2 - 2 a b + b^2.
    """
    ones = torch.ones_like(to.x)
    left, right = [], []
    for a, b, reach in (
        (of.x, to.x, _REACH * of.width),
        (of.y, to.y, _REACH * of.height),
        (of.size, to.size, torch.full_like(of.size, _SIZE_REACH)),
    ):
        sharp = reach.reciprocal().square()
        left += [a.square() * sharp, -2 * a * sharp, sharp]
        right += [ones, b, b.square()]
    exponent = (-0.5 * torch.stack(left, dim=2)) @ torch.stack(right, dim=1)
    return torch.exp(exponent.clamp(max=0.0))


def comparisons(at: Places) -> tuple[Tensor, Tensor, Tensor]:
    """Whether j lies clearly left of i, clearly above i, and is clearly larger: (B, N, N) each."""
    return (
        _clearly_less(at.x, _CLEAR_DISTANCE, _DISTANCE_BLUR),
        _clearly_less(at.y, _CLEAR_DISTANCE, _DISTANCE_BLUR),
        _clearly_less(-at.size, _CLEAR_SIZE, _SIZE_BLUR),
    )


def _clearly_less(value: Tensor, by: float, blur: float) -> Tensor:
    """(B, N) -> (B, N, N): at i, j from 0 to 1 whether value j < value i by a clear margin."""
    scaled = value / blur
    return torch.sigmoid((scaled - by / blur).unsqueeze(2) - scaled.unsqueeze(1))


def _side(log_length: Tensor) -> Tensor:
    return log_length.clamp(-4.0, 0.5).exp()


def _absolute(geometry: Tensor) -> Tensor:
    """Offsets from each place become positions in the square."""
    height, width = geometry.shape[-2:]
    across = (torch.arange(width, device=geometry.device, dtype=geometry.dtype) + 0.5) / width
    down = (torch.arange(height, device=geometry.device, dtype=geometry.dtype) + 0.5) / height
    x = geometry[:, 0:1] + across.view(1, 1, 1, width)
    y = geometry[:, 1:2] + down.view(1, 1, height, 1)
    return torch.cat((x, y, geometry[:, 2:]), dim=1)


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
