"""Image backbones: a pyramid of features at strides 8, 16 and 32.

B = batch, S = input side.
"""

from __future__ import annotations

from typing import cast

import timm
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import Bottleneck
from torch import Tensor, nn

from .attention import split_heads
from .config import SegVLMConfig

Pyramid = tuple[Tensor, Tensor, Tensor]


class SpatialAttentionPool(nn.Module):
    """CLIP's attention pool with every location as a query, as in CRIS.

    No class token: the learned 7 x 7 position grid is resized (bicubic) to the feature map. The
    branch `connect` (1x1 convolution, BN) is CRIS's own residual and has no CLIP weights.
    """

    def __init__(self, grid: int, width: int, heads: int, out: int) -> None:
        super().__init__()
        self.grid, self.heads = grid, heads
        self.positional_embedding = nn.Parameter(torch.randn(grid**2 + 1, width) / width**0.5)
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.c_proj = nn.Linear(width, out)
        self.connect = nn.Sequential(nn.Conv2d(width, out, 1, bias=False), nn.BatchNorm2d(out))

    def positions(self, height: int, width: int) -> Tensor:
        """The position grid at another size: (1, height * width, channels)."""
        grid = self.positional_embedding[1:].view(self.grid, self.grid, -1)
        grid = grid.permute(2, 0, 1).unsqueeze(0)  # (1, C, 7, 7)
        resized = F.interpolate(grid, (height, width), mode="bicubic", align_corners=False)
        return resized.flatten(2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 2048, S/32, S/32) -> (B, out, S/32, S/32)."""
        height, width = x.shape[-2:]
        tokens = x.flatten(2).transpose(1, 2) + self.positions(height, width)
        q, k, v = (
            split_heads(project(tokens), self.heads)
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        pooled = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        pooled = self.c_proj(pooled).transpose(1, 2).unflatten(2, (height, width))
        return F.relu(pooled + self.connect(x))


class ClipResNet(nn.Module):
    """CLIP's ModifiedResNet (three-convolution stem, anti-aliased strides), all stages kept."""

    def __init__(self, depths: tuple[int, int, int, int], out: int) -> None:
        super().__init__()
        width, self.channels = 64, (512, 1024, out)
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        stages = []
        inner = width
        for stage, depth in enumerate(depths):
            planes, stride = width * 2**stage, 1 if stage == 0 else 2
            blocks = [Bottleneck(inner, planes, stride)]
            inner = planes * Bottleneck.expansion
            blocks += [Bottleneck(inner, planes) for _ in range(1, depth)]
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.attnpool = SpatialAttentionPool(7, inner, 32, out)

    def forward(self, x: Tensor) -> Pyramid:
        """(B, 3, S, S) -> 512 at S/8, 1024 at S/16, `out` at S/32."""
        for conv, bn in ((self.conv1, self.bn1), (self.conv2, self.bn2), (self.conv3, self.bn3)):
            x = F.relu(bn(conv(x)))
        x = self.layer1(F.avg_pool2d(x, 2))  # (B, 256, S/4, S/4)
        c3 = self.layer2(x)
        c4 = self.layer3(c3)
        return c3, c4, self.attnpool(self.layer4(c4))


class EfficientNetLite0(nn.Module):
    """timm's `tf_efficientnet_lite0` without its head: 40, 112, 320 channels at strides 8, 16, 32.

    The TF variant ("same" padding, mean = std = 0.5) is the one the ImageNet weights were made for.
    """

    channels = (40, 112, 320)

    def __init__(self) -> None:
        super().__init__()
        self.trunk = timm.create_model(
            "tf_efficientnet_lite0", pretrained=False, features_only=True, out_indices=(2, 3, 4)
        )

    def forward(self, x: Tensor) -> Pyramid:
        """(B, 3, S, S) -> features at S/8, S/16, S/32."""
        return cast(Pyramid, tuple(self.trunk(x)))


def build_image_encoder(config: SegVLMConfig) -> ClipResNet | EfficientNetLite0:
    """The backbone that `config.image_encoder` names, with fresh weights."""
    if config.image_encoder == "efficientnet-lite0":
        return EfficientNetLite0()
    depths = {"clip-rn50": (3, 4, 6, 3), "clip-rn101": (3, 4, 23, 3)}[config.image_encoder]
    encoder = ClipResNet(depths, config.state_width)
    for module in encoder.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return encoder
