"""The text and image projector: SegVLM's enhancement block and CRIS's dynamic convolution.

B = batch, S = input side, C = decoder, P = projector, K = kernel, D = state width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import SegVLMConfig
from .deformable import DeformableConv2d
from .layers import ConvBNReLU, Coordinates
from .neck import upsample


class SqueezeExcitation(nn.Module):
    """s = sigmoid(W2 ReLU(W1 GAP(x))); s * x (equation 2; Hu et al., 2018)."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, channels // reduction, 1)
        self.excite = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = x.mean(dim=(2, 3), keepdim=True)
        return x * torch.sigmoid(self.excite(F.relu(self.squeeze(pooled))))


class EnhancementBlock(nn.Module):
    """The spatially-aware visual enhancement block (equations 1-3) in place of a 3x3 stage.

    The paper leaves its place open. Our reading: it replaces the projector's first upsample + 3x3
    stage and works on the upsampled map u = U(x). x_dcf = ReLU(BN(phi(u, F_offset(u)))),
    x_se = SE(x_dcf), x_res = 1x1 convolution of u, and x_fused = x_se + x_res. With the three
    switches off it is exactly CRIS's 3x3 convolution, BN, ReLU.
    """

    def __init__(self, width: int, config: SegVLMConfig) -> None:
        super().__init__()
        self.spatial: nn.Module
        if config.deformable:
            self.spatial = DeformableConv2d(width, width)
        else:
            self.spatial = nn.Conv2d(width, width, 3, padding=1, bias=False)
            nn.init.kaiming_normal_(self.spatial.weight, mode="fan_out", nonlinearity="relu")
        self.norm = nn.BatchNorm2d(width)
        self.se = SqueezeExcitation(width, config.se_reduction) if config.se else None
        self.residual = nn.Conv2d(width, width, 1) if config.residual else None

    def forward(self, u: Tensor) -> Tensor:
        """(B, P, H, W) -> (B, P, H, W); u is the upsampled map."""
        x = F.relu(self.norm(self.spatial(u)))
        if self.se is not None:
            x = self.se(x)
        return x if self.residual is None else x + self.residual(u)


class DynamicConvolution(nn.Module):
    """A 3x3 kernel and a bias made from the sentence, applied to its own sample's map (CRIS).

    CRIS runs one convolution with B groups, which ties a graph to its batch size. Here the nine
    taps are one batched matrix product, whose nine maps are shifted and added: the same numbers.
    """

    def __init__(self, state_width: int, channels: int) -> None:
        super().__init__()
        self.kernel = nn.Linear(state_width, channels * 9 + 1)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """x (B, K, H, W), state (B, D) -> logits (B, H, W)."""
        height, width = x.shape[-2:]
        generated = self.kernel(state)
        weight = generated[:, :-1].unflatten(1, (-1, 9)).transpose(1, 2)  # (B, 9, K)
        taps = (weight @ x.flatten(2)).unflatten(2, (height, width))  # (B, 9, H, W)
        taps = F.pad(taps, (1, 1, 1, 1))
        shifted = [
            taps[:, 3 * dy + dx, dy : dy + height, dx : dx + width]
            for dy in range(3)
            for dx in range(3)
        ]
        logits: Tensor = torch.stack(shifted).sum(dim=0) + generated[:, -1, None, None]
        return logits


class GatedSkip(nn.Module):
    """p3 features that the sentence lets through, ReLU(BN(conv(p3) * linear(state))); lite only."""

    def __init__(self, inner: int, width: int, state_width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inner, width, 1, bias=False)
        self.sentence = nn.Linear(state_width, width)
        self.norm = nn.BatchNorm2d(width)
        nn.init.ones_(self.sentence.bias)

    def forward(self, p3: Tensor, state: Tensor) -> Tensor:
        gate = self.sentence(state)[:, :, None, None]
        return F.relu(self.norm(self.conv(p3) * gate))


class Projector(nn.Module):
    """From fused features at stride 16 to logits at stride 4."""

    def __init__(self, config: SegVLMConfig) -> None:
        super().__init__()
        inner, width = config.neck_widths[1], config.projector_width
        self.reduce = nn.Identity() if inner == width else ConvBNReLU(inner, width, 1)
        self.skip = (
            GatedSkip(config.neck_widths[0], width, config.state_width)
            if config.projector_skip
            else None
        )
        self.enhancement = EnhancementBlock(width, config)
        self.conv = ConvBNReLU(width, config.kernel_width, 3)
        self.mix = nn.Conv2d(config.kernel_width, config.kernel_width, 1)
        self.coordinates = Coordinates() if config.projector_coordinates else None
        channels = config.kernel_width + 2 * config.projector_coordinates
        self.dynamic = DynamicConvolution(config.state_width, channels)

    def forward(self, x: Tensor, p3: Tensor, state: Tensor) -> Tensor:
        """x (B, C, S/16, S/16), p3 (B, w3, S/8, S/8), state (B, D) -> logits (B, S/4, S/4)."""
        u = upsample(self.reduce(x))  # (B, P, S/8, S/8)
        if self.skip is not None:
            u = u + self.skip(p3, state)
        x = self.mix(self.conv(upsample(self.enhancement(u))))  # (B, K, S/4, S/4)
        if self.coordinates is not None:
            x = self.coordinates(x)
        return self.dynamic(x, state)  # type: ignore[no-any-return]
