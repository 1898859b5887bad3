"""The neck: the image pyramid meets the sentence, and becomes one map at stride 16 (CRIS, 3.2).

B = batch, S = input side; w3, w4, w5 = config.neck_widths.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import SegVLMConfig
from .image_encoder import Pyramid
from .layers import ConvBNReLU, Coordinates, SentenceBatchNorm


def upsample(x: Tensor) -> Tensor:
    """Twice the size, bilinear."""
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class Neck(nn.Module):
    """Fuses features of three strides under the sentence.

    Official CRIS runs the `lateral` convolutions once an expression. They do not depend on the
    words, so here they belong to the image's own stage and run once an image.
    """

    def __init__(self, channels: tuple[int, int, int], config: SegVLMConfig) -> None:
        super().__init__()
        c3, c4, c5 = channels
        w3, w4, w5 = config.neck_widths
        self.lateral3 = ConvBNReLU(c3, w3, 3)
        self.lateral4 = ConvBNReLU(c4, w4, 3)
        self.lateral5 = ConvBNReLU(c5, w5, 1)

        self.sentence = nn.Sequential(
            nn.Linear(config.state_width, w5, bias=False), SentenceBatchNorm(w5), nn.ReLU()
        )
        self.gate = nn.Sequential(nn.BatchNorm2d(w5), nn.ReLU())
        self.merge4 = ConvBNReLU(w5 + w4, w4, 1)
        self.merge3 = ConvBNReLU(w3 + w4, w4, 1)
        self.query5 = ConvBNReLU(w5, w4, 3)
        self.query4 = ConvBNReLU(w4, w4, 3)
        self.query3 = ConvBNReLU(w4, w4, 3)
        self.aggregate = ConvBNReLU(3 * w4, w4, 1)
        self.coordinates = Coordinates()
        self.coordinate_conv = ConvBNReLU(w4 + 2, w4, 3)
        self.refine = ConvBNReLU(w4, w4, 3)

    def project(self, c3: Tensor, c4: Tensor, c5: Tensor) -> Pyramid:
        """What the words do not touch: p3 (B, w3, S/8, S/8), p4 (B, w4, ...), p5 (B, w5, ...)."""
        return self.lateral3(c3), self.lateral4(c4), self.lateral5(c5)

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor, state: Tensor) -> Tensor:
        """Fuse the projected pyramid with the sentence state (B, D) -> (B, w4, S/16, S/16)."""
        f5 = self.gate(p5 * self.sentence(state)[:, :, None, None])  # (B, w5, S/32, S/32)
        f4 = self.merge4(torch.cat((p4, upsample(f5)), dim=1))  # (B, w4, S/16, S/16)
        f3 = self.merge3(torch.cat((F.avg_pool2d(p3, 2), f4), dim=1))
        fused = (self.query3(f3), self.query4(f4), upsample(self.query5(f5)))
        x = self.aggregate(torch.cat(fused, dim=1))
        return self.refine(self.coordinate_conv(self.coordinates(x)))  # type: ignore[no-any-return]
