"""The vision-language decoder: pixels attend to each other and to the words (CRIS, 3.3).

B = batch, N = H * W pixels, L = words, C = width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import MultiheadAttention, sinusoids
from .config import SegVLMConfig

# Positions are tables, sliced at run time: inputs up to 16 * 256 = 4096 pixels a side.
_LONGEST_SIDE = 256


class DecoderLayer(nn.Module):
    """Self-attention, attention to the words, feed-forward; norms before and after attention."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.self_attn = MultiheadAttention(width, heads, dropout)
        self.self_attn_norm = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.cross_attn = MultiheadAttention(width, heads, dropout)
        self.cross_attn_norm = nn.LayerNorm(width)
        self.norm3 = nn.LayerNorm(width)
        self.ffn = nn.Sequential(
            nn.Linear(width, ffn),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.LayerNorm(ffn),
            nn.Linear(ffn, width),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, words: Tensor, positions: Tensor, word_positions: Tensor, attend: Tensor
    ) -> Tensor:
        """x (B, N, C), words (B, L, C), attend (B, 1, 1, L) bool -> (B, N, C)."""
        y = self.norm1(x)
        q = y + positions
        x = x + self.dropout(self.self_attn_norm(self.self_attn(q, q, y)))
        q = self.norm2(x) + positions
        y = self.cross_attn(q, words + word_positions, words, attend)
        x = x + self.dropout(self.cross_attn_norm(y))
        return x + self.dropout(self.ffn(self.norm3(x)))  # type: ignore[no-any-return]


class VisionLanguageDecoder(nn.Module):
    """Transformer over pixels; fixed positions, 2-D for pixels (x, then y) and 1-D for words."""

    pixel_table: Tensor
    word_table: Tensor

    def __init__(self, config: SegVLMConfig) -> None:
        super().__init__()
        width = config.neck_widths[1]
        self.layers = nn.ModuleList(
            DecoderLayer(width, config.decoder_heads, config.decoder_ffn, config.dropout)
            for _ in range(config.decoder_layers)
        )
        self.norm = nn.LayerNorm(width)
        table = sinusoids(_LONGEST_SIDE, width // 2)
        self.register_buffer("pixel_table", table, persistent=False)
        self.register_buffer(
            "word_table", sinusoids(config.text_positions, width), persistent=False
        )

    def forward(self, x: Tensor, words: Tensor, pad_mask: Tensor) -> Tensor:
        """x (B, C, H, W), words (B, L, C), pad_mask (B, L) bool -> (B, C, H, W)."""
        height, width = x.shape[-2:]
        across = self.pixel_table[:width].expand(height, -1, -1)
        down = self.pixel_table[:height, None].expand(-1, width, -1)
        positions = torch.cat((across, down), dim=-1).flatten(0, 1)  # (N, C)
        word_positions = self.word_table[: words.shape[1]]
        attend = ~pad_mask[:, None, None, :]
        tokens = x.flatten(2).transpose(1, 2)  # (B, N, C)
        for layer in self.layers:
            tokens = layer(tokens, words, positions, word_positions, attend)
        return self.norm(tokens).transpose(1, 2).unflatten(2, (height, width))  # type: ignore[no-any-return]
