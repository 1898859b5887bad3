"""Multi-head attention and fixed positions, batch first.

B = batch, Q = query positions, K = key positions, C = channels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class MultiheadAttention(nn.Module):
    """Scaled dot-product attention with the parameter names of `torch.nn.MultiheadAttention`.

    torch's own module switches to a fused kernel in evaluation, which neither traces nor exports;
    this one is the same arithmetic on `scaled_dot_product_attention` alone.
    """

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attend: Tensor | None = None
    ) -> Tensor:
        """Attend.

        Args:
            query: (B, Q, C). key, value: (B, K, C).
            attend: bool, broadcastable to (B, heads, Q, K); True where a key may be looked at; None
                for everywhere.

        Returns:
            (B, Q, C)
        """
        weights = self.in_proj_weight.chunk(3)
        biases = self.in_proj_bias.chunk(3)
        q, k, v = (
            split_heads(F.linear(x, w, b), self.heads)
            for x, w, b in zip((query, key, value), weights, biases, strict=True)
        )  # (B, heads, Q or K, C / heads)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=attend, dropout_p=dropout)
        return self.out_proj(out.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, N, C) -> (B, heads, N, C / heads)."""
    return x.view(x.shape[0], -1, heads, x.shape[-1] // heads).transpose(1, 2)


def sinusoids(positions: int, width: int) -> Tensor:
    """Fixed encodings (Vaswani et al., 2017), sine and cosine interleaved: (positions, width)."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10000.0) / width))
    angles = torch.arange(positions).unsqueeze(1) * rates
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)
