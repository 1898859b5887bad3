"""Losses over objects: what is meant is pulled up, siblings down, and the unknown left alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from training.losses import RafConfig
from training.object_losses import (
    ANCHOR,
    MATCHED,
    SIBLING,
    UNKNOWN,
    UNRELATED,
    ObjectLossConfig,
    Roles,
    anchor_loss,
    class_loss,
    class_targets,
    faulty_class_logits,
    geometry_loss,
    object_geometry,
    pick_loss,
    roles_of,
    sibling_pixel_weight,
)

RAF = RafConfig(focal_alpha=0.5, detach_weight=True)


@pytest.fixture
def objects() -> Tensor:
    """One image of 16 x 16 cells: object 1 left, 2 right, 3 below; the rest is not annotated."""
    numbers = torch.zeros(1, 16, 16, dtype=torch.int64)
    numbers[0, 2:6, 1:5] = 1
    numbers[0, 2:6, 10:14] = 2
    numbers[0, 10:15, 4:12] = 3
    return numbers


def one_phrase(objects: Tensor, *roles: int) -> Roles:
    return roles_of(objects, torch.tensor([roles]), torch.zeros(1, dtype=torch.int64))


def test_roles_become_pixels(objects: Tensor) -> None:
    roles = one_phrase(objects, UNRELATED, MATCHED, SIBLING, ANCHOR)
    assert torch.equal(roles.pixels(roles.matched)[0] > 0, objects[0] == 1)
    assert torch.equal(roles.pixels(roles.sibling)[0] > 0, objects[0] == 2)
    assert torch.equal(roles.pixels(roles.anchor)[0] > 0, objects[0] == 3)
    assert torch.equal(roles.pixels(roles.of_class)[0] > 0, (objects[0] == 1) | (objects[0] == 2))
    assert roles.known.tolist() == [True]


def test_an_object_without_cells_has_no_role(objects: Tensor) -> None:
    objects[objects == 2] = 0
    roles = one_phrase(objects, UNRELATED, MATCHED, SIBLING, UNRELATED)
    assert not roles.sibling.any()


def test_only_siblings_weigh_more(objects: Tensor) -> None:
    weight = sibling_pixel_weight(one_phrase(objects, 0, MATCHED, SIBLING, UNRELATED), 5.0)
    assert weight[0][objects[0] == 2].unique().tolist() == [6.0]
    assert weight[0][objects[0] != 2].unique().tolist() == [1.0]


def test_picking_pulls_what_is_meant_up_and_the_sibling_down(objects: Tensor) -> None:
    selection = torch.zeros(1, 16, 16, requires_grad=True)
    pick_loss(selection, one_phrase(objects, 0, MATCHED, SIBLING, UNRELATED)).backward()
    assert selection.grad is not None
    gradient = selection.grad[0]
    assert (gradient[objects[0] == 1] < 0).all()
    assert (gradient[objects[0] == 2] > 0).all()
    assert (gradient[(objects[0] == 0) | (objects[0] == 3)] == 0).all(), "no place of the class"


def test_picking_right_costs_less(objects: Tensor) -> None:
    roles = one_phrase(objects, 0, MATCHED, SIBLING, UNRELATED)
    right = torch.where(objects == 1, 4.0, -4.0)
    assert pick_loss(right, roles) < 0.1
    assert pick_loss(-right, roles) > 4


def test_nothing_meant_pushes_all_of_the_class_down(objects: Tensor) -> None:
    selection = torch.zeros(1, 16, 16, requires_grad=True)
    pick_loss(selection, one_phrase(objects, 0, SIBLING, SIBLING, UNRELATED)).backward()
    assert selection.grad is not None
    assert (selection.grad[0][(objects[0] == 1) | (objects[0] == 2)] > 0).all()


def test_a_phrase_that_does_not_say_what_it_means_picks_nothing(objects: Tensor) -> None:
    selection = torch.zeros(1, 16, 16, requires_grad=True)
    loss = pick_loss(selection, one_phrase(objects, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN))
    loss.backward()
    assert loss == 0 and selection.grad is not None and not selection.grad.any()


def test_the_class_is_everything_of_it(objects: Tensor) -> None:
    roles = one_phrase(objects, 0, MATCHED, SIBLING, UNRELATED)
    target = (objects == 1).float()
    whole = torch.where((objects == 1) | (objects == 2), 8.0, -8.0)
    only_target = torch.where(objects == 1, 8.0, -8.0)
    assert class_loss(whole, target, roles, RAF) < 0.01
    assert class_loss(only_target, target, roles, RAF) > 0.1
    unknown = one_phrase(objects, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN)
    assert class_loss(only_target, target, unknown, RAF) < 0.01


def test_spilling_onto_another_class_costs_more(objects: Tensor) -> None:
    roles = one_phrase(objects, 0, MATCHED, UNRELATED, ANCHOR)
    target = (objects == 1).float()

    def gradient(phrase: Roles, other_weight: float) -> Tensor:
        logits = torch.zeros(1, 16, 16, requires_grad=True)
        config = RafConfig(focal_weight=0, dice_weight=0)  # BCE: a pixel's gradient is its weight's
        class_loss(logits, target, phrase, config, other_weight).backward()
        assert logits.grad is not None
        return logits.grad[0]

    plain, weighed = gradient(roles, 0.0), gradient(roles, 2.0)
    of_others = (objects[0] == 2) | (objects[0] == 3)
    ratio = weighed / plain
    mean = (3 * of_others.sum() + (~of_others).sum()) / of_others.numel()  # BCE is a weighted mean
    assert torch.allclose(ratio[of_others], 3 / mean)
    assert torch.allclose(ratio[~of_others], 1 / mean)
    unknown = one_phrase(objects, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN)
    assert torch.equal(gradient(unknown, 2.0), plain), "what is not known is no other class"
    siblings = one_phrase(objects, 0, MATCHED, SIBLING, SIBLING)
    assert torch.equal(gradient(siblings, 2.0), gradient(siblings, 0.0))


def test_a_given_class_map_is_the_class_with_faults(objects: Tensor) -> None:
    roles = roles_of(
        objects,
        torch.tensor([[UNRELATED, MATCHED, SIBLING, UNRELATED]] * 400),
        torch.zeros(400, dtype=torch.int64),
    )
    union = class_targets((objects == 1).float().expand(400, -1, -1), roles)
    torch.manual_seed(0)
    logits = faulty_class_logits(union, roles)
    inside, outside = logits[:, 3:5, 2:4], logits[:, 8, :]
    assert (inside > 0).all() and (outside < 0).all()
    assert logits.flatten(1).amax(1).std() > 0.3, "of varied sureness"
    wrong = (logits[:, 11:14, 6:10] > 0).flatten(1).all(1).float().mean()
    assert 0.02 < wrong < 0.12, "now and then an object of another class"


def test_the_attention_belongs_on_the_anchor(objects: Tensor) -> None:
    roles = one_phrase(objects, 0, MATCHED, SIBLING, ANCHOR)
    places = torch.full((1, 16), 1e-6)
    on_it, beside = places.clone(), places.clone()
    on_it[0, 13] = 1.0  # of 4 x 4 places the one of rows 12..15 and columns 4..7
    beside[0, 0] = 1.0
    assert anchor_loss(on_it.log(), roles) < anchor_loss(beside.log(), roles)
    without = one_phrase(objects, 0, MATCHED, SIBLING, UNRELATED)
    assert anchor_loss(beside.log(), without) == 0


def test_true_geometry(objects: Tensor) -> None:
    truth = object_geometry(objects)[0]
    x, y, width, height, size, weight = truth[1].tolist()
    assert (x, y) == (3 / 16, 4 / 16)
    assert width == height == pytest.approx(math.log(4 / 16))
    assert size == pytest.approx(math.log(4 / 16))
    assert weight == 0.25
    assert truth[0].tolist() == [0] * 6
    assert truth[3][:2].tolist() == [8 / 16, 12.5 / 16]


def test_geometry_is_judged_on_known_objects_alone(objects: Tensor) -> None:
    """An object that nobody annotated may be predicted to lie anywhere."""
    truth = object_geometry(objects)
    maps = []
    for side in (8, 4):
        step = 16 // side
        number = objects[:, step // 2 :: step, step // 2 :: step].flatten(1)
        right = truth.gather(1, number.unsqueeze(2).expand(-1, -1, 6))[..., :5]
        right[number == 0] = torch.randn(int((number == 0).sum()), 5)
        maps.append(right.transpose(1, 2).unflatten(2, (side, side)))
    assert geometry_loss(tuple(maps), objects) == pytest.approx(0, abs=1e-6)
    worse = tuple(each + 0.2 for each in maps)
    assert geometry_loss(worse, objects) > 0.5


def test_no_objects_no_loss_and_finite_gradients() -> None:
    nothing = torch.zeros(2, 16, 16, dtype=torch.int64)
    maps = (torch.zeros(2, 5, 8, 8, requires_grad=True),)
    loss = geometry_loss(maps, nothing)
    loss.backward()
    assert loss == 0 and torch.isfinite(maps[0].grad).all()
    roles = roles_of(nothing, torch.zeros(2, 1, dtype=torch.int64), torch.arange(2))
    selection = torch.zeros(2, 16, 16, requires_grad=True)
    pick_loss(selection, roles).backward()
    assert selection.grad is not None and torch.isfinite(selection.grad).all()


def test_terms_are_off_by_default_and_never_negative() -> None:
    assert not ObjectLossConfig().enabled
    assert ObjectLossConfig(sibling_weight=1.0).enabled
    assert not ObjectLossConfig(sibling_weight=1.0).needs_selection
    assert ObjectLossConfig(geometry_weight=1.0).needs_selection
    with pytest.raises(ValueError, match=r"objects\.pick_weight must be 0 or more"):
        ObjectLossConfig(pick_weight=-1.0)
    with pytest.raises(ValueError, match="no class map to teach"):
        ObjectLossConfig(class_given=True, class_weight=1.0)
