"""Losses over the objects of a photo: siblings, picking the right one, where objects lie. Not in
the paper; all are off by default.

Where a store tells objects apart (`PhraseStore.objects`), a batch carries `objects` (I, H, W), the
number of the object at each cell of the targets (0: none known), and `roles` (N, K + 1), what each
object is to each phrase. An object that the annotation leaves out has no number and no role, so
nothing here calls it wrong.

I = images, N = phrases, K = objects of an image, H, W = S/4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .losses import RafConfig, raf_loss

UNRELATED, SIBLING, MATCHED, ANCHOR, UNKNOWN = 0, 1, 2, 3, -1
"""Roles of an object for a phrase: of another class, of its class but not meant, meant, named to
say where the target is; UNKNOWN everywhere where the phrase does not say what it means."""

_WRONG_OBJECT = 0.06  # how often an object of another class is in a given map of the class


@dataclass(frozen=True)
class ObjectLossConfig:
    """Weights beside the RAF loss of the answer; 0 switches a term off.

    sibling_weight: how many times more a pixel of a sibling counts in the answer's own loss.
    class_weight: RAF loss of the class logits with everything of the phrase's class.
    other_weight: how many times more a pixel of an object of another class counts in that loss.
    pick_weight: cross-entropy of the selection's means over the siblings.
    anchor_weight: negative log of the attention on the object that a phrase names beside its own.
    geometry_weight: distance of the predicted from the true object of every place.
    vocabulary_weight: cross-entropy of the name of every annotated place, see `vocabulary`.
    """

    sibling_weight: float = 0.0
    class_weight: float = 0.0
    other_weight: float = 0.0
    pick_weight: float = 0.0
    anchor_weight: float = 0.0
    geometry_weight: float = 0.0
    vocabulary_weight: float = 0.0
    class_given: bool = False
    """Teach the selection alone, from the true map of the class with some faults put in: neither
    neck, decoder nor projector runs, which makes a step many times cheaper."""
    class_apart: bool = False
    """Let the answer's loss teach the selection alone: the class map, which is for any words about
    the class the same, learns by `class_weight` and not from what a phrase leaves out."""
    class_shared: bool = False
    """Ask for the map of a class once an image, by one of its phrases drawn at random, and let it
    serve the others: more phrases for the same work."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value >= 0:
                raise ValueError(f"objects.{name} must be 0 or more, not {value}")
        if self.class_given and (self.class_weight or self.class_shared):
            raise ValueError(
                "objects.class_given leaves no class map to teach or to share; leave class_weight "
                "and class_shared out"
            )
        if self.other_weight and not self.class_weight:
            raise ValueError("objects.other_weight weighs pixels of class_weight's loss; set that")
        if self.class_apart and not (self.class_weight or self.class_given):
            raise ValueError("objects.class_apart leaves the class map to class_weight; set it")

    @property
    def needs_selection(self) -> bool:
        """Whether a term is about maps that only a network with `selection` has."""
        weights = (
            self.class_weight,
            self.pick_weight,
            self.anchor_weight,
            self.geometry_weight,
            self.vocabulary_weight,
        )
        return self.class_given or self.class_shared or self.class_apart or any(weights)

    @property
    def enabled(self) -> bool:
        """Whether batches need objects."""
        return self.sibling_weight > 0 or self.needs_selection


class Roles(NamedTuple):
    """Objects as masks, float (N, K, H, W), and what each is to each phrase, bool (N, K)."""

    masks: Tensor
    sibling: Tensor
    matched: Tensor
    anchor: Tensor
    known: Tensor
    """(N,): whether the phrase says what it means."""

    @property
    def of_class(self) -> Tensor:
        return self.sibling | self.matched

    def pixels(self, chosen: Tensor) -> Tensor:
        """Union of the chosen (N, K) objects: float (N, H, W) of 0 and 1."""
        return torch.einsum("nk,nkhw->nhw", chosen.to(self.masks.dtype), self.masks)


def roles_of(objects: Tensor, roles: Tensor, image_index: Tensor) -> Roles:
    """objects int64 (I, H, W), roles int64 (N, K + 1), image_index (N,)."""
    count = roles.shape[1] - 1
    numbers = torch.arange(1, count + 1, device=objects.device).view(1, count, 1, 1)
    masks = (objects.unsqueeze(1) == numbers).float()[image_index]
    seen = masks.flatten(2).any(2)  # an object may be hidden, or too small for the cells
    role = roles[:, 1:]
    return Roles(
        masks,
        sibling=(role == SIBLING) & seen,
        matched=(role == MATCHED) & seen,
        anchor=(role == ANCHOR) & seen,
        known=roles[:, 0] != UNKNOWN,
    )


def sibling_pixel_weight(roles: Roles, more: float) -> Tensor:
    """1, and 1 + `more` on the pixels of siblings: (N, H, W)."""
    return 1 + more * roles.pixels(roles.sibling)


def class_targets(targets: Tensor, roles: Roles) -> Tensor:
    """Everything of each phrase's class, (N, H, W); where that is not known, the phrase's target.

    A phrase that does not say what it means is about a class whose masks are regions.
    """
    union = torch.maximum(targets, roles.pixels(roles.of_class))
    return torch.where(roles.known.view(-1, 1, 1), union, targets)


def shared_class_rows(roles: Roles, image_index: Tensor) -> tuple[Tensor, Tensor]:
    """One phrase of every class of every image, at random, and which of them serves each phrase.

    Phrases share a class where they are about the same objects of one image. Those that do not say
    what they mean, or are about none, keep to themselves. -> rows (R,), of (N,).
    """
    count = len(image_index)
    order = torch.randperm(count).tolist()
    members = roles.of_class.tolist()
    images, known = image_index.tolist(), roles.known.tolist()
    rows: list[int] = []
    first: dict[tuple[int, ...], int] = {}
    of = [0] * count
    for phrase in order:
        shares = known[phrase] and any(members[phrase])
        key = (images[phrase], *members[phrase]) if shares else (-1, phrase)
        if key not in first:
            first[key] = len(rows)
            rows.append(phrase)
        of[phrase] = first[key]
    device = image_index.device
    return torch.tensor(rows, device=device), torch.tensor(of, device=device)


def faulty_class_logits(union: Tensor, roles: Roles) -> Tensor:
    """Logits as a fair class map would have them: of varied sureness, now and then with a wrong
    object in it. Random numbers are torch's own.

    union: (N, H, W) of 0 and 1.
    """
    count = len(union)
    others = ~roles.of_class & (torch.rand_like(roles.masks[..., 0, 0]) < _WRONG_OBJECT)
    shown = torch.maximum(union, 0.7 * roles.pixels(others))
    blurred = F.avg_pool2d(shown.unsqueeze(1), 5, stride=1, padding=2).squeeze(1)
    sharp = torch.rand(count, 1, 1, device=union.device)
    sure = 2 + 3 * torch.rand(count, 1, 1, device=union.device)
    return sure * (2 * (sharp * shown + (1 - sharp) * blurred) - 1)


def class_loss(
    class_logits: Tensor, targets: Tensor, roles: Roles, config: RafConfig, other_weight: float = 0
) -> Tensor:
    """RAF loss with everything of the class.

    A pixel of an object that is known to be of another class counts `other_weight` times more.
    """
    union = class_targets(targets, roles)
    weight = None
    if other_weight:
        others = ~roles.of_class & roles.known.unsqueeze(1)
        weight = 1 + other_weight * roles.pixels(others) * (1 - union)
    return raf_loss(class_logits, union, config, pixel_weight=weight).total


def pick_loss(selection: Tensor, roles: Roles) -> Tensor:
    """How far the selection's means over the siblings are from what the phrase says.

    Binary cross-entropy of each sibling's mean, the meant and the others in equal parts; and,
    where some are meant and some are not, cross-entropy over the siblings of the meant.
    """
    area = roles.masks.sum((2, 3)).clamp(min=1)
    means = torch.einsum("nhw,nkhw->nk", selection, roles.masks) / area
    right, wrong = roles.matched, roles.sibling
    binary = _mean_over(F.softplus(-means), right) + _mean_over(F.softplus(means), wrong)
    both = right.any(1) & wrong.any(1)
    scores = means.masked_fill(~roles.of_class, -torch.inf)[both]
    chosen = right[both]
    if not len(scores):
        return binary.mean()
    log_share = scores.logsumexp(1) - scores.masked_fill(~chosen, -torch.inf).logsumexp(1)
    return binary.mean() + log_share.sum() / len(selection)


def _mean_over(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of (N, K) over the chosen: (N,), 0 where none is."""
    kept = torch.where(chosen, values, torch.zeros_like(values))
    return kept.sum(1) / chosen.sum(1).clamp(min=1)


def anchor_loss(anchor: Tensor, roles: Roles) -> Tensor:
    """Negative log of the attention that falls on the anchors; 0 where no phrase has one.

    anchor: (N, P) log attention over the P places of stride 16, row by row.
    """
    chosen = roles.anchor.any(1)
    side = round(anchor.shape[1] ** 0.5)
    cover = F.adaptive_avg_pool2d(roles.pixels(roles.anchor).unsqueeze(1), side).flatten(1)
    inside = (anchor.exp() * cover.clamp(max=1)).sum(1)
    loss = -(inside + 1e-3).log()
    return torch.where(chosen, loss, torch.zeros_like(loss)).sum() / len(anchor)


def geometry_loss(maps: tuple[Tensor, ...], objects: Tensor) -> Tensor:
    """Mean distance of predicted and true objects, over the places that show one.

    Centres in the object's own sides, sizes as logarithms. Every object counts by the root of its
    places, so that large ones do not decide everything.

    Args:
        maps: (I, 5, h, w) as `model.objects.GeometryHead` makes them. objects: (I, H, W).
    """
    truth = object_geometry(objects)  # (I, K + 1, 6)
    total = maps[0].new_zeros(())
    for predicted in maps:
        step = objects.shape[1] // predicted.shape[2]
        number = objects[:, step // 2 :: step, step // 2 :: step].flatten(1)  # (I, P)
        wanted = truth.gather(1, number.unsqueeze(2).expand(-1, -1, truth.shape[2]))
        shown = predicted.flatten(2).transpose(1, 2).to(truth.dtype)  # (I, P, 5)
        sides = wanted[..., 2:4].exp().clamp(min=0.06)
        centre = F.smooth_l1_loss(
            shown[..., :2] / sides, wanted[..., :2] / sides, beta=0.1, reduction="none"
        )
        size = F.smooth_l1_loss(shown[..., 2:], wanted[..., 2:5], beta=0.2, reduction="none")
        weight = (number > 0) * wanted[..., 5]
        per_place = 2 * centre.sum(2) + size.sum(2)
        total = total + (per_place * weight).sum() / weight.sum().clamp(min=1e-6)
    return total / len(maps)


def object_geometry(objects: Tensor) -> Tensor:
    """Of each object number of each image: (I, K + 1, 6).

    Centre x and y, log width, log height, log root of the area, all in shares of the side, as
    `model.objects` predicts them; and its weight, one over the root of its cells. Number 0 and
    objects that are not seen have zeros.
    """
    count, (_, height, width) = int(objects.max()), objects.shape
    numbers = torch.arange(count + 1, device=objects.device).view(1, -1, 1, 1)
    masks = objects.unsqueeze(1) == numbers
    columns, rows = masks.any(2), masks.any(3)  # (I, K + 1, W), (I, K + 1, H)
    left, right = _ends(columns)
    top, bottom = _ends(rows)
    area = masks.sum((2, 3)).clamp(min=1)
    made = torch.stack(
        (
            (left + right) / (2 * width),
            (top + bottom) / (2 * height),
            ((right - left).clamp(min=1) / width).log(),
            ((bottom - top).clamp(min=1) / height).log(),
            0.5 * (area / (height * width)).log(),
            area**-0.5,
        ),
        dim=2,
    )
    seen = masks.flatten(2).any(2)
    seen[:, 0] = False
    return torch.where(seen.unsqueeze(2), made, torch.zeros_like(made))


def _ends(present: Tensor) -> tuple[Tensor, Tensor]:
    """First and one behind the last True along the last axis, float."""
    length = present.shape[-1]
    place = torch.arange(length, device=present.device)
    first = torch.where(present, place, length).amin(-1)
    last = torch.where(present, place, -1).amax(-1) + 1
    return first.float(), last.float()
