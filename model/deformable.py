"""Deformable convolution v1 (Dai et al., 2017): a 3x3 kernel whose taps move, offsets predicted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

assert deform_conv2d is not None  # importing it registers torch.ops.torchvision.deform_conv2d


class DeformableConv2d(nn.Module):
    """x -> phi(x, F_offset(x)), equation 1 of the paper; size kept, no modulation.

    Offsets start at zero, so it starts as the ordinary convolution with its `weight`. It has no
    bias of its own; `model.folding` gives it one, a batch norm's shift.

    It computes in the type of its weights. Keep them in float32 where the rest of a network is
    float16 or bfloat16: rounded offsets would be off by a tenth of a pixel.
    """

    bias: Tensor | None

    def __init__(self, inner: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out, inner, 3, 3))
        self.register_parameter("bias", None)
        self.offset = nn.Conv2d(inner, 18, 3, padding=1)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        nn.init.zeros_(self.offset.weight)
        assert self.offset.bias is not None
        nn.init.zeros_(self.offset.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inner, H, W) -> (B, out, H, W)."""
        if x.dtype != self.weight.dtype and not torch.is_autocast_enabled(x.device.type):
            return self._sample(x.to(self.weight.dtype)).to(x.dtype)
        return self._sample(x)

    def _sample(self, x: Tensor) -> Tensor:
        offset = self.offset(x)
        if self.training and x.device.type == "cpu":
            # torchvision's CPU gradient is several times slower than grid_sample's.
            assert self.bias is None, "a folded network does not train"
            return deform_conv2d_by_sampling(x, offset, self.weight)
        if x.device.type == "cpu":
            # Where an offset is not a number torchvision's CPU kernel reads outside the map.
            offset = offset.masked_fill(offset.isnan(), 0)
        # torchvision's own function makes the zeros on a device that a traced graph would keep.
        bias = x.new_zeros(self.weight.shape[0]) if self.bias is None else self.bias
        no_mask = x.new_zeros(x.shape[0], 1)
        stride = padding = dilation = (1, 1)
        out: Tensor = torch.ops.torchvision.deform_conv2d(
            x, self.weight, offset, no_mask, bias, *stride, *padding, *dilation, 1, 1, False
        )
        return out


def deform_conv2d_by_sampling(x: Tensor, offset: Tensor, weight: Tensor) -> Tensor:
    """`torchvision.ops.deform_conv2d` for 3x3 kernels with padding 1, on `grid_sample`.

    Args:
        x: (B, C, H, W). offset: (B, 18, H, W), y before x for each tap. weight: (O, C, 3, 3).

    Returns:
        (B, O, H, W)
    """
    batch, channels, height, width = x.shape
    # bfloat16 coordinates would be off by a tenth of a pixel.
    exact = torch.promote_types(x.dtype, torch.float32)
    offset = offset.to(exact).view(batch, 9, 2, height, width)
    tap = torch.arange(9, device=x.device)
    rows = torch.arange(height, device=x.device).view(1, 1, height, 1)
    columns = torch.arange(width, device=x.device).view(1, 1, 1, width)
    y = rows + (tap // 3 - 1).view(1, 9, 1, 1) + offset[:, :, 0]
    across = columns + (tap % 3 - 1).view(1, 9, 1, 1) + offset[:, :, 1]
    # Pixel centres between -1 and 1, the edges of the map; with align_corners=True a side of one
    # pixel would have no outside.
    grid = torch.stack(((2 * across + 1) / width - 1, (2 * y + 1) / height - 1), dim=-1)
    taps = F.grid_sample(x.to(exact), grid.flatten(1, 2), align_corners=False)
    out = weight.flatten(1) @ taps.view(batch, channels * 9, -1).to(weight.dtype)
    return out.view(batch, -1, height, width)
