"""The network as training calls it, and the loss of what it answers.

I = images, N = phrases, R = phrases whose class map is asked for, S = input side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from model.segvlm import Decoded, SegVLM
from model.selection import both

from .config import TrainConfig
from .data.dataset import Batch
from .losses import RafTerms, raf_loss
from .object_losses import (
    ObjectLossConfig,
    Roles,
    anchor_loss,
    class_loss,
    class_targets,
    faulty_class_logits,
    geometry_loss,
    pick_loss,
    shared_class_rows,
    sibling_pixel_weight,
)
from .vocabulary import VocabularyHead, vocabulary_loss


class ClassMaps(NamedTuple):
    """Where the class maps of a batch's phrases come from: the network for each of them, unless

    given: (N, S/4, S/4), logits at hand. rows: (R,), the phrases to ask for; of: (N,), which of
    these serves each phrase.
    """

    given: Tensor | None = None
    rows: Tensor | None = None
    of: Tensor | None = None


EVERY_CLASS_MAP = ClassMaps()


def class_maps_to_ask(batch: Batch, roles: Roles, objects: ObjectLossConfig) -> ClassMaps:
    """As the settings say."""
    if objects.class_given:
        return ClassMaps(given=faulty_class_logits(class_targets(batch.targets, roles), roles))
    if objects.class_shared:
        return ClassMaps(None, *shared_class_rows(roles, batch.image_index))
    return EVERY_CLASS_MAP


class Answers(NamedTuple):
    """What the losses look at. geometry: maps (I, 5, h, w), () without `selection`. names: scores
    of `VocabularyHead`, None without it."""

    decoded: Decoded
    geometry: tuple[Tensor, ...]
    names: Tensor | None = None


class TrainingForward(nn.Module):
    """The network as training calls it: a photo is encoded once for several of its phrases.

    class_apart: no gradient of the answer reaches the class map, see `ObjectLossConfig`.
    vocabulary: names the image's places for the loss; None: nothing does.
    """

    def __init__(
        self, model: SegVLM, class_apart: bool = False, vocabulary: VocabularyHead | None = None
    ) -> None:
        super().__init__()
        self.model, self.class_apart, self.vocabulary = model, class_apart, vocabulary

    def forward(
        self,
        images: Tensor,
        tokens: Tensor,
        image_index: Tensor,
        given: Tensor | None = None,
        rows: Tensor | None = None,
        of: Tensor | None = None,
    ) -> Answers:
        """images (I, S, S, 3), tokens (N, L), image_index (N,) -> logits (N, S/4, S/4) and more.

        `image_index` rises and names every image. `given`, `rows`, `of`: see `ClassMaps`.
        """
        model = self.model
        p3, p4, p5 = model.encode_image(images)
        text = model.encode_text(tokens)
        if not model.config.selection:
            if len(tokens) != len(
                images
            ):  # else it is 0, 1, 2, ... and its gradient costs GPUs dear
                p3, p4, p5 = p3[image_index], p4[image_index], p5[image_index]
            return Answers(model.decode_parts(p3, p4, p5, *text), ())
        geometry = model.geometry_of(p3, p4)
        if given is None:
            chosen = torch.arange(len(tokens), device=tokens.device) if rows is None else rows
            images_of = image_index[chosen]
            asked = (part[chosen] for part in text)
            given = model.class_map(p3[images_of], p4[images_of], p5[images_of], *asked)
            given = given if of is None else given[of]
        relations = model.relate_objects(p3, p4).of(image_index)
        selected = model.select(p4[image_index], p5[image_index], given, relations, text[1])
        shown = given.detach() if self.class_apart else given
        names = None if self.vocabulary is None else self.vocabulary(p4, p5)
        return Answers(Decoded(both(shown, selected.logits), given, *selected), geometry, names)


class ObjectTerms(NamedTuple):
    """The unweighted terms of `object_losses`, 0 where they are off."""

    by_class: Tensor
    pick: Tensor
    anchor: Tensor
    geometry: Tensor
    vocabulary: Tensor


def all_terms(
    answers: Answers, batch: Batch, roles: Roles | None, config: TrainConfig
) -> tuple[RafTerms, ObjectTerms]:
    """The loss of a micro-batch and what it is made of."""
    objects, decoded = config.objects, answers.decoded
    zero = decoded.logits.new_zeros((), dtype=torch.float32)
    none = ObjectTerms(*(zero,) * len(ObjectTerms._fields))
    if roles is None:
        return raf_loss(decoded.logits, batch.targets, config.loss), none
    weight = None
    if objects.sibling_weight:
        weight = sibling_pixel_weight(roles, objects.sibling_weight)
    terms = raf_loss(decoded.logits, batch.targets, config.loss, pixel_weight=weight)
    if not objects.needs_selection:
        return terms, none
    extra = _object_terms(answers, batch, roles, config)
    total = (
        terms.total
        + objects.class_weight * extra.by_class
        + objects.pick_weight * extra.pick
        + objects.anchor_weight * extra.anchor
        + objects.geometry_weight * extra.geometry
        + objects.vocabulary_weight * extra.vocabulary
    )
    return terms._replace(total=total), extra


def _object_terms(answers: Answers, batch: Batch, roles: Roles, config: TrainConfig) -> ObjectTerms:
    _, class_logits, selection, anchor = answers.decoded
    assert class_logits is not None and selection is not None and anchor is not None
    by_class = class_logits.new_zeros((), dtype=torch.float32)
    if config.objects.class_weight:
        more = config.objects.other_weight
        by_class = class_loss(class_logits, batch.targets, roles, config.loss, more)
    named = class_logits.new_zeros((), dtype=torch.float32)
    if answers.names is not None:
        named = vocabulary_loss(answers.names, batch.objects, batch.names)
    return ObjectTerms(
        by_class,
        pick_loss(selection.float(), roles),
        anchor_loss(anchor.float(), roles),
        geometry_loss(tuple(each.float() for each in answers.geometry), batch.objects),
        named,
    )
