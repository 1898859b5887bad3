"""SegVLM: an image and an expression in, the logits of the referred region out.

B = batch, S = input side, L = word length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .config import SegVLMConfig
from .decoder import VisionLanguageDecoder
from .image_encoder import Pyramid, build_image_encoder
from .layers import running_statistics
from .neck import Neck
from .objects import GEOMETRY, GeometryHead
from .optimal_threshold import OptimalThreshold
from .projector import Projector
from .selection import CUES, RGB, Relations, Selection, SelectionHead, SentenceReader, both, relate
from .text_encoder import TextEncoder


class Decoded(NamedTuple):
    """What the decoder answers, logits (B, S/4, S/4) each.

    logits: of the answer. class_logits: of everything of the class that the sentence names;
    selection: of what the sentence means among it; anchor (B, N): log attention to what it names
    beside its target, over the N places of stride 16. The last three are None without
    `config.selection`.
    """

    logits: Tensor
    class_logits: Tensor | None = None
    selection: Tensor | None = None
    anchor: Tensor | None = None


class SegVLM(nn.Module):
    """CRIS (CVPR 2022) with SegVLM's enhancement block (arXiv 2505.19242); see `SegVLMConfig`.

    Three stages, because their costs repeat differently: an image is encoded once for many
    expressions, an expression once for many images.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: SegVLMConfig) -> None:
        super().__init__()
        self.config = config
        self.image_encoder = build_image_encoder(config)
        self.text_encoder = TextEncoder(config)
        self.neck = Neck(self.image_encoder.channels, config)
        self.decoder = VisionLanguageDecoder(config)
        self.projector = Projector(config)
        self.geometry = GeometryHead(self.image_encoder.channels) if config.selection else None
        self.reader = SentenceReader(config) if config.selection else None
        self.selection = SelectionHead(config) if config.selection else None
        self.optimal_threshold = OptimalThreshold() if config.optimal_threshold else None
        mean, std = torch.tensor(config.mean) * 255, torch.tensor(config.std) * 255
        self.register_buffer("mean", mean.view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", std.view(1, 3, 1, 1), persistent=False)

    def forward(self, image: Tensor, tokens: Tensor) -> Tensor:
        """image (B, S, S, 3) uint8 and tokens (B, L) int64 -> logits (B, S/4, S/4)."""
        return self.decode(*self.encode_image(image), *self.encode_text(tokens))

    def forward_normalized(self, image: Tensor, tokens: Tensor) -> Tensor:
        """The same from an image (B, 3, S, S) that is already normalised, float."""
        return self.decode(*self._pyramid(image), *self.encode_text(tokens))

    def encode_image(self, image: Tensor) -> Pyramid:
        """Encode images once for any number of expressions.

        Args:
            image: (B, S, S, 3) uint8, letterboxed RGB; S a multiple of 32.

        Returns:
            p3 (B, w3, S/8, S/8), p4 (B, w4, S/16, S/16), p5 (B, w5, S/32, S/32); with
            `config.selection` p3 has 8 channels more (colour and object geometry), p4 has 5.

        Raises:
            ValueError: if the image has another layout or a side that 32 does not divide.
        """
        if image.shape[-1] != 3 or image.shape[1] % 32 or image.shape[2] % 32:
            raise ValueError(
                "image must be (B, S, S, 3) with S a multiple of 32, "
                f"not {tuple(image.shape)}; model.preprocess.letterbox_image makes one"
            )
        normalized = (image.permute(0, 3, 1, 2).to(self.mean.dtype) - self.mean) / self.std
        return self._pyramid(normalized)

    def encode_text(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """tokens (B, L) int64 -> words (B, L, C), state (B, D), pad_mask (B, L), True = padding.

        With `config.selection` the state is twice as wide: the selection's follows the sentence's.
        """
        words, state, pad_mask = self.text_encoder(tokens)
        if self.reader is not None:
            embedded = self.text_encoder.token_embedding(tokens)
            state = torch.cat((state, self.reader(embedded, words, pad_mask)), dim=1)
        return words, state, pad_mask

    def decode(
        self, p3: Tensor, p4: Tensor, p5: Tensor, words: Tensor, state: Tensor, pad_mask: Tensor
    ) -> Tensor:
        """Answer expression i on image i: logits (B, S/4, S/4)."""
        logits = self.decode_parts(p3, p4, p5, words, state, pad_mask).logits
        if self.optimal_threshold is None:
            return logits
        return self.optimal_threshold(logits)  # type: ignore[no-any-return]

    def decode_parts(
        self,
        p3: Tensor,
        p4: Tensor,
        p5: Tensor,
        words: Tensor,
        state: Tensor,
        pad_mask: Tensor,
        relations: Relations | None = None,
    ) -> Decoded:
        """The answer with what it is made of, for the losses.

        `relations`: of `relate_objects`, where they are at hand; else they are made here.
        """
        class_logits = self.class_map(p3, p4, p5, words, state, pad_mask)
        if self.selection is None:
            return Decoded(class_logits)
        seen = self.relate_objects(p3, p4) if relations is None else relations
        chosen = self.select(p4, p5, class_logits, seen, state)
        logits = both(class_logits, chosen.logits)
        return Decoded(logits, class_logits, chosen.logits, chosen.anchor)

    def class_map(
        self, p3: Tensor, p4: Tensor, p5: Tensor, words: Tensor, state: Tensor, pad_mask: Tensor
    ) -> Tensor:
        """SegVLM's own output: logits (B, S/4, S/4).

        It is the answer, or with `config.selection` everything of the class.
        """
        if self.selection is not None:
            p3, p4 = p3[:, :-CUES], p4[:, :-GEOMETRY]
            state = state[:, : self.config.state_width]
        if self.training and p5.shape[0] * p5.shape[2] * p5.shape[3] == 1:
            with running_statistics(self):
                return self._class_map((p3, p4, p5), words, state, pad_mask)
        return self._class_map((p3, p4, p5), words, state, pad_mask)

    @staticmethod
    def relate_objects(p3: Tensor, p4: Tensor) -> Relations:
        """What a pyramid with `config.selection` says about its objects, for all of its phrases."""
        return relate(p3[:, -CUES:], p4[:, -GEOMETRY:])

    def _pyramid(self, image: Tensor) -> Pyramid:
        """Normalised image (B, 3, S, S) -> p3, p4, p5."""
        if self.training and image.shape[0] == 1 and image.shape[2:] == (32, 32):
            with running_statistics(self):
                return self._projected(image)
        return self._projected(image)

    def _projected(self, image: Tensor) -> Pyramid:
        levels = self.image_encoder(image)
        p3, p4, p5 = self.neck.project(*levels)
        if self.geometry is None:
            return p3, p4, p5
        fine, coarse = self.geometry(*levels)
        return torch.cat((p3, _mean_colours(image), fine), 1), torch.cat((p4, coarse), 1), p5

    def _class_map(
        self, pyramid: Pyramid, words: Tensor, state: Tensor, pad_mask: Tensor
    ) -> Tensor:
        x = self.decoder(self.neck(*pyramid, state), words, pad_mask)
        return self.projector(x, pyramid[0], state)  # type: ignore[no-any-return]

    def select(
        self, p4: Tensor, p5: Tensor, class_logits: Tensor, seen: Relations, state: Tensor
    ) -> Selection:
        """What a sentence means among the things of a class whose map is at hand."""
        assert self.selection is not None
        width = self.config.state_width
        chosen: Selection = self.selection(
            p4[:, :-GEOMETRY], p5, class_logits, seen, state[:, width:]
        )
        return chosen

    @staticmethod
    def geometry_of(p3: Tensor, p4: Tensor) -> tuple[Tensor, Tensor]:
        """The geometry maps (B, 5, h, w) within a pyramid with `config.selection`."""
        return p3[:, RGB - CUES :], p4[:, -GEOMETRY:]


def _mean_colours(image: Tensor) -> Tensor:
    """The mean of each square of 8 x 8 pixels: (B, 3, S, S) -> (B, 3, S/8, S/8).

    Rows, then columns: a CPU's pooling is slow on three channels.
    """
    height, width = image.shape[2] // 8, image.shape[3] // 8
    rows = image.reshape(-1, 3, height, 8, 8 * width).mean(3)
    return rows.reshape(-1, 3, height, width, 8).mean(4)


def build_segvlm(config: SegVLMConfig) -> SegVLM:
    """A SegVLM of these sizes with fresh weights (Kaiming for convolutions), in training mode."""
    return SegVLM(config)
