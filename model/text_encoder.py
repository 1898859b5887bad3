"""CLIP's text transformer as CRIS uses it: word features and the sentence state.

B = batch, L = word length, E = embedding width, C = text width, D = state width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .attention import MultiheadAttention
from .config import SegVLMConfig

VOCABULARY = 49408


class QuickGELU(nn.Module):
    """CLIP's approximation of GELU (Radford et al., 2021)."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


class ResidualAttentionBlock(nn.Module):
    """Pre-norm transformer block with CLIP's parameter names."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = MultiheadAttention(width, heads, dropout)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", nn.Linear(width, 4 * width))
        self.mlp.add_module("gelu", QuickGELU())
        self.mlp.add_module("c_proj", nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, attend: Tensor) -> Tensor:
        y = self.ln_1(x)
        x = x + self.dropout(self.attn(y, y, y, attend))
        return x + self.dropout(self.mlp(self.ln_2(x)))  # type: ignore[no-any-return]


class TextEncoder(nn.Module):
    """Tokens to word features and sentence state.

    Words are the features after the last normalisation, not projected; the state is the
    end-of-text feature times `text_projection` (CRIS). `logit_scale` is CLIP's temperature: the
    segmentation never uses it; it is kept, frozen, so that CLIP and CRIS weights go in whole.
    """

    causal: Tensor

    def __init__(self, config: SegVLMConfig) -> None:
        super().__init__()
        width, embedding = config.text_width, config.text_embedding_width
        self.token_embedding = nn.Embedding(VOCABULARY, embedding)
        self.embedding_lift = (
            nn.Identity() if embedding == width else nn.Linear(embedding, width, bias=False)
        )
        self.positional_embedding = nn.Parameter(torch.empty(config.text_positions, width))
        self.blocks = nn.ModuleList(
            ResidualAttentionBlock(width, config.text_heads, config.text_dropout)
            for _ in range(config.text_layers)
        )
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.empty(width, config.state_width))
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log(), requires_grad=False)
        length = config.text_positions
        causal = torch.ones(length, length, dtype=torch.bool).tril()
        self.register_buffer("causal", causal, persistent=False)
        nn.init.normal_(self.token_embedding.weight, std=0.02 * (width / embedding) ** 0.5)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode expressions.

        Args:
            tokens: (B, L) int64; 0 is padding, the end-of-text token has the largest id.

        Returns:
            words (B, L, C), state (B, D), pad_mask (B, L) bool, True where there is padding.
        """
        length = tokens.shape[1]
        x = self.embedding_lift(self.token_embedding(tokens)) + self.positional_embedding[:length]
        attend = self.causal[:length, :length]
        for block in self.blocks:
            x = block(x, attend)
        words = self.ln_final(x)  # (B, L, C)
        end = tokens.argmax(dim=-1).view(-1, 1, 1).expand(-1, 1, words.shape[-1])
        state = words.gather(1, end).squeeze(1) @ self.text_projection  # (B, D)
        return words, state, tokens == 0
