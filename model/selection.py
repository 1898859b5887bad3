"""Which of the things of a class a sentence means: a map of its own beside the class's.

Ours, not in the paper. The answer is p = sigmoid(class) * sigmoid(selection): the class logits are
SegVLM's own output, the selection comes from here. It sees what decides a reference and what
convolutions learn slowly: the place, the rank and the size of the object that a pixel belongs to
(`objects`), its colour in the picture's own RGB, and where it lies to the object that the sentence
names beside it.

B = batch, S = input side, N = (S/16)^2 places, L = words, C = text width, D = state width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import MultiheadAttention
from .config import SegVLMConfig
from .neck import upsample
from .objects import GEOMETRY, Places, belonging, comparisons, places

RGB = 3
CUES = RGB + GEOMETRY
"""Channels that the image's stage appends to p3; to p4 it appends the geometry alone."""

_SHADES = 4  # of each of red, green and blue
_COLOURS = _SHADES**3
_SHADE_REACH = 0.35  # of a colour's neighbourhood, in the picture's normalised values
_TOKEN = 32
_HIDDEN = 48
_RANKS = 4  # 0, 1, 2 and 3 objects before this one
_LITTLE = 0.1  # of a place: below it, objects of the class hardly exist
_FIRST_LOGIT = 3.0  # everything of the class is meant until something says otherwise


class Selection(NamedTuple):
    """logits (B, S/4, S/4); anchor (B, N): log of the attention to what the sentence names beside
    its target."""

    logits: Tensor
    anchor: Tensor


class Relations(NamedTuple):
    """What the image alone says about its objects; an image's is the same for all its phrases.

    at: the objects of the N places of stride 16. same: (B, N, N), whether j shows i's object;
    before: three of (B, N, N), see `objects.comparisons`. spread: (B, 4 N, N), whether place j of
    stride 16 shows the object of place i of stride 8. colours: (B, N, 64), see `colour_shares`.
    """

    at: Places
    same: Tensor
    before: tuple[Tensor, Tensor, Tensor]
    spread: Tensor
    colours: Tensor

    def of(self, image_index: Tensor) -> Relations:
        """For phrases, each about its own image."""
        return Relations(
            Places(*(each[image_index] for each in self.at)),
            self.same[image_index],
            (self.before[0][image_index], self.before[1][image_index], self.before[2][image_index]),
            self.spread[image_index],
            self.colours[image_index],
        )


def relate(p3_cues: Tensor, p4_cues: Tensor) -> Relations:
    """From the cues of the image's stage: p3's (B, 8, S/8, S/8), p4's (B, 5, S/16, S/16).

    Without gradient: the geometry is learned by a loss of its own.
    """
    at, fine = places(p4_cues), places(p3_cues[:, RGB:])
    colours = colour_shares(p3_cues[:, :RGB].detach())
    return Relations(at, belonging(at, at), comparisons(at), belonging(fine, at), colours)


def colour_shares(rgb: Tensor) -> Tensor:
    """Which of 4 x 4 x 4 colours each place of stride 16 has, softly, from those of stride 8.

    Averaged over an object this is its histogram, in which a colour's name is a sum of entries:
    a sentence that names one has only to weigh them.

    Args:
        rgb: (B, 3, H, W) in -1..1, H and W even.

    Returns:
        (B, H/2 * W/2, 64); the colours come last, where a CPU's softmax is fast.
    """
    levels = torch.linspace(-1, 1, _SHADES, device=rgb.device, dtype=rgb.dtype)
    grid = torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij")).flatten(1)  # (3, 64)
    inner = rgb.flatten(2).transpose(1, 2) @ grid
    distance = grid.square().sum(0) - 2 * inner  # less |rgb|^2, which all share
    shares = torch.softmax(distance / (-2 * _SHADE_REACH**2), dim=2)
    height, width = rgb.shape[2] // 2, rgb.shape[3] // 2
    rows = shares.reshape(-1, height, 2, 2 * width, _COLOURS).mean(2)
    return rows.reshape(-1, height, width, 2, _COLOURS).mean(3).flatten(1, 2)


class SentenceReader(nn.Module):
    """The words read once more, both ways, and pooled: what the selection listens to.

    The sentence state of the text encoder steers the class's map and learns to hold the noun; what
    tells siblings apart gets a state of its own. It belongs to the text's stage.
    """

    def __init__(self, config: SegVLMConfig) -> None:
        super().__init__()
        width = config.text_width
        self.lift = nn.Linear(config.text_embedding_width, width)
        self.norm1 = nn.LayerNorm(width)
        self.attn = MultiheadAttention(width, config.text_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width)
        )
        self.pool = nn.Linear(width, config.text_heads)
        self.out = nn.Linear(config.text_heads * width, config.state_width)
        self.norm = nn.LayerNorm(config.state_width)

    def forward(self, embedded: Tensor, words: Tensor, pad_mask: Tensor) -> Tensor:
        """embedded (B, L, E) tokens, words (B, L, C), pad_mask (B, L) -> (B, D)."""
        attend = ~pad_mask[:, None, None, :]
        x = words + self.lift(embedded)
        y = self.norm1(x)
        x = x + self.attn(y, y, y, attend)
        x = x + self.mlp(self.norm2(x))
        scores = self.pool(x).masked_fill(pad_mask.unsqueeze(2), -1e4).softmax(dim=1)
        pooled = (scores.transpose(1, 2) @ x).flatten(1)  # (B, heads * C)
        state: Tensor = self.norm(self.out(pooled))
        return state


class SentenceMLP(nn.Module):
    """Features of places -> one logit each: a product with the sentence, and two layers that it
    steers."""

    def __init__(self, features: int, state_width: int, bias: float) -> None:
        super().__init__()
        self.inner = nn.Linear(features, _HIDDEN)
        self.steer = nn.Linear(state_width, 2 * _HIDDEN)
        self.outer = nn.Linear(state_width, _HIDDEN + 1)
        self.straight = nn.Linear(state_width, features)
        nn.init.normal_(self.straight.weight, std=0.05)
        nn.init.zeros_(self.straight.bias)
        nn.init.normal_(self.steer.weight, std=0.02)
        nn.init.zeros_(self.steer.bias)
        nn.init.normal_(self.outer.weight, std=0.02)
        with torch.no_grad():
            self.outer.bias[-1] = bias

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """x (B, N, features), state (B, D) -> (B, N)."""
        scale, shift = self.steer(state).unsqueeze(1).chunk(2, dim=2)
        hidden = F.relu(self.inner(x) * (1 + scale) + shift)
        weight = self.outer(state)
        logits = (hidden @ weight[:, :-1].unsqueeze(2)).squeeze(2) + weight[:, -1:]
        return logits + (x @ self.straight(state).unsqueeze(2)).squeeze(2)  # type: ignore[no-any-return]


class SelectionHead(nn.Module):
    """Two rounds: what the object is like by itself, then how it compares with its likes.

    The geometry is learned by its own loss; no gradient flows back into it, nor into the class
    logits, from here.
    """

    def __init__(self, config: SegVLMConfig) -> None:
        super().__init__()
        width, state_width = config.neck_widths[1] + config.neck_widths[2], config.state_width
        self.token = nn.Sequential(nn.Linear(width, _TOKEN), nn.ReLU())
        self.key = nn.Linear(width, _TOKEN)
        self.query = nn.Linear(state_width, _TOKEN)
        alone = _COLOURS + _TOKEN + _PLACE_FEATURES + _ANCHOR_FEATURES
        compared = alone + _RANK_FEATURES
        self.alone = SentenceMLP(alone, state_width, bias=_FIRST_LOGIT)
        self.compared = SentenceMLP(compared, state_width, bias=0.0)

    def forward(
        self, p4: Tensor, p5: Tensor, class_logits: Tensor, seen: Relations, state: Tensor
    ) -> Selection:
        """Select.

        Args:
            p4, p5: of the image, without cues. class_logits: (B, S/4, S/4). state: (B, D), of the
                reader.
        """
        side = p4.shape[-1]
        at, same = seen.at, seen.same
        own = F.avg_pool2d(class_logits.detach().unsqueeze(1), 4).flatten(1).sigmoid()  # (B, N)
        tokens = torch.cat((p4, upsample(p5)), dim=1).flatten(2).transpose(1, 2)
        anchor = self._attention(tokens, state)  # (B, N)
        features = [
            _over_objects(seen.colours, same, own),
            self.token(tokens),
            _place_features(at),
            anchor_features(at, anchor.exp()),
        ]
        alone = self.alone(torch.cat(features, dim=2), state)
        alone = _over_objects(alone.unsqueeze(2), same, own).squeeze(2)
        ranks = _rank_features(seen, own * alone.detach().sigmoid())
        compared = self.compared(torch.cat([*features, ranks], dim=2), state)
        logits = alone + _over_objects(compared.unsqueeze(2), same, own).squeeze(2)
        return Selection(_spread(logits, seen.spread, side), anchor)

    def _attention(self, tokens: Tensor, state: Tensor) -> Tensor:
        scores = self.key(tokens) @ self.query(state).unsqueeze(2)  # (B, N, 1)
        return F.log_softmax(scores.squeeze(2) * _TOKEN**-0.5, dim=1)


def _spread(logits: Tensor, weights: Tensor, side: int) -> Tensor:
    """(B, N) -> (B, S/4, S/4): each finer place takes the logit of its own object."""
    square = logits.view(-1, 1, side, side)
    smooth = F.interpolate(square, scale_factor=2.0, mode="bilinear", align_corners=False)
    total = weights.sum(2) + _LITTLE
    taken = (weights @ logits.unsqueeze(2)).squeeze(2) + _LITTLE * smooth.flatten(1)
    spread = (taken / total).view(-1, 1, 2 * side, 2 * side)
    up = F.interpolate(spread, scale_factor=2.0, mode="bilinear", align_corners=False)
    return up.squeeze(1)


def both(class_logits: Tensor, selection: Tensor) -> Tensor:
    """Logits of sigmoid(a) * sigmoid(b): -log(exp(-a) + exp(-b) + exp(-a - b))."""
    a, b = -class_logits, -selection
    return -torch.logsumexp(torch.stack((a, b, a + b)), dim=0)


def _over_objects(values: Tensor, same: Tensor, own: Tensor) -> Tensor:
    """The mean of values (B, N, K) over the places of each place's object, of the class alone."""
    weights = same * own.unsqueeze(1)
    total = weights.sum(2, keepdim=True) + _LITTLE
    return (weights @ values + _LITTLE * values) / total


_PLACE_FEATURES = 9


def _place_features(at: Places) -> Tensor:
    """Where an object lies and how large it is: (B, N, 9), each about -1 to 1."""
    centre = 2 * torch.stack((at.x, at.y), dim=2) - 1
    shape = at.width.log() - at.height.log()
    rest = torch.stack((at.size + 1.6, shape), dim=2)
    product = centre[..., :1] * centre[..., 1:]
    return torch.cat((centre, centre * centre, product, centre.abs(), rest), dim=2)


_ANCHOR_FEATURES = 11


def anchor_features(at: Places, attention: Tensor) -> Tensor:
    """How an object lies to the mean of what `attention` (B, N) looks at: (B, N, 11).

    Of both axes at once: a graph of many small operations costs a CPU more than its arithmetic.
    """
    centre, sides = torch.stack((at.x, at.y), dim=2), torch.stack((at.width, at.height), dim=2)
    mean = attention.unsqueeze(1) @ torch.cat((centre, sides), dim=2)  # (B, 1, 4)
    away = centre - mean[..., :2]
    far = away.abs()
    gap = far - 0.5 * (sides + mean[..., 2:])  # below 0 where the boxes share columns, or rows
    within = (far - 0.5 * (mean[..., 2:] - sides)).amax(dim=2, keepdim=True)
    square = (away * away).sum(dim=2, keepdim=True) + 1e-6
    signs = torch.cat((8 * gap, 8 * within, away / 0.05), dim=2).tanh()
    return torch.cat(
        (
            away,
            square.sqrt(),
            signs,
            far[..., :1] - far[..., 1:],
            torch.exp(square * (-0.5 / 0.08**2)),
            gap.amax(dim=2, keepdim=True).clamp(-1, 1) * 4,
        ),
        dim=2,
    )


_RANK_FEATURES = 6 * _RANKS + 3 + 3


def _rank_features(seen: Relations, own: Tensor) -> Tensor:
    """How many objects of the class lie left, right, above, below, are larger, smaller: (B, N, 30).

    A place weighs as much as its object has places, inversely, so each object counts once.
    """
    weight = own / ((seen.same @ own.unsqueeze(2)).squeeze(2) + _LITTLE)  # (B, N)
    ranks = []
    for before in seen.before:
        ranks.append((before @ weight.unsqueeze(2)).squeeze(2))
        ranks.append((weight.unsqueeze(1) @ before).squeeze(1))
    steps = torch.arange(_RANKS, device=own.device, dtype=own.dtype)
    known = torch.stack(ranks, dim=2)  # (B, N, 6)
    near = torch.exp(-2 * (known.unsqueeze(3) - steps).square()).flatten(2)
    balance = torch.exp(-2 * (known[..., 0::2] - known[..., 1::2]).square())  # middle of each
    count = weight.sum(1, keepdim=True).unsqueeze(2).expand(-1, own.shape[1], 1)
    number = torch.exp(-0.5 * (count - steps[1:]).square())
    return torch.cat((near, balance, number), dim=2)
