"""The second map: it counts and compares objects, and is off unless a configuration asks for it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.config import PRESETS, preset_config
from model.objects import GEOMETRY, Places, belonging, comparisons, places
from model.segvlm import SegVLM, build_segvlm
from model.selection import RGB, anchor_features, both, colour_shares, relate

SIDE = 12  # places along a side of stride 16

# x, y, width and height of three objects as shares of the square, none touching another.
BOXES = ((0.2, 0.5, 0.2, 0.2), (0.5, 0.25, 0.2, 0.2), (0.8, 0.6, 0.3, 0.4))


def geometry_of(boxes: tuple[tuple[float, ...], ...], side: int) -> tuple[Tensor, Tensor]:
    """A true geometry map (1, 5, side, side), and which box each place shows (side^2,), -1 none."""
    at = (torch.arange(side) + 0.5) / side
    maps = torch.zeros(1, GEOMETRY, side, side)
    maps[0, 0], maps[0, 1] = at.view(1, side), at.view(side, 1)
    maps[0, 2:] = -3.0
    shown = torch.full((side, side), -1)
    for number, (x, y, width, height) in enumerate(boxes):
        inside = ((at - x).abs() < width / 2).view(1, side) & ((at - y).abs() < height / 2).view(
            side, 1
        )
        values = torch.tensor([width, height, (width * height) ** 0.5]).log()
        maps[0, :, inside] = torch.cat((torch.tensor([x, y]), values)).view(5, 1)
        shown[inside] = number
    return maps, shown.flatten()


def test_places_of_one_object_belong_together() -> None:
    geometry, shown = geometry_of(BOXES, SIDE)
    same = belonging(places(geometry), places(geometry))[0]
    objects = shown >= 0
    together = (shown.unsqueeze(1) == shown)[objects][:, objects]
    found = same[objects][:, objects]
    assert found[together].min() > 0.95
    assert found[~together].max() < 0.05


def test_finer_places_find_their_object() -> None:
    coarse, shown = geometry_of(BOXES, SIDE)
    fine, shown_fine = geometry_of(BOXES, 2 * SIDE)
    weights = belonging(places(fine), places(coarse))[0]
    for number in range(len(BOXES)):
        mine = weights[shown_fine == number]
        assert mine[:, shown == number].min() > 0.95
        assert mine[:, (shown >= 0) & (shown != number)].max() < 0.05


def test_every_object_counts_once_in_a_rank() -> None:
    """Left of the right one are two, whatever their sizes; above the left one is one."""
    geometry, shown = geometry_of(BOXES, SIDE)
    at = places(geometry)
    own = (shown >= 0).float()[None]
    same = belonging(at, at)
    weight = own / ((same @ own.unsqueeze(2)).squeeze(2) + 1e-6)
    left, above, larger = ((m @ weight.unsqueeze(2))[0, :, 0] for m in comparisons(at))
    expected = {0: (0, 1, 1), 1: (1, 0, 1), 2: (2, 2, 0)}
    for number, counts in expected.items():
        place = int(torch.nonzero(shown == number)[0])
        found = [left[place].item(), above[place].item(), larger[place].item()]
        assert found == pytest.approx(counts, abs=0.15), number


def test_two_maps_make_the_product_of_their_probabilities() -> None:
    a, b = torch.randn(2, 50, dtype=torch.float64).mul(5)
    assert torch.allclose(both(a, b).sigmoid(), a.sigmoid() * b.sigmoid(), atol=1e-12)
    extreme = torch.tensor([100.0, -100.0, 100.0, -100.0])
    other = torch.tensor([100.0, -100.0, -100.0, 100.0])
    assert torch.isfinite(both(extreme, other)).all()


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_no_preset_has_it_by_default(preset: str) -> None:
    assert not preset_config(preset).selection


@pytest.fixture(scope="module")
def network() -> SegVLM:
    torch.manual_seed(0)
    return build_segvlm(preset_config("segvlm-lite", image_size=64, selection=True)).eval()


@pytest.fixture(scope="module")
def request_of_three() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, 64, 64, 3), generator=generator, dtype=torch.uint8)
    tokens = torch.zeros(3, 17, dtype=torch.int64)
    for row, count in enumerate((2, 5, 9)):
        words = torch.randint(1, 49000, (count,), generator=generator)
        tokens[row, : count + 2] = torch.tensor([49406, *words.tolist(), 49407])
    return image, tokens


@torch.inference_mode()
def test_batched_is_single(network: SegVLM, request_of_three: tuple[Tensor, Tensor]) -> None:
    image, tokens = request_of_three
    together = network(image, tokens)
    for row in range(3):
        alone = network(image[row : row + 1], tokens[row : row + 1])
        assert torch.allclose(together[row : row + 1], alone, atol=1e-4)


@torch.inference_mode()
def test_padding_changes_nothing(network: SegVLM, request_of_three: tuple[Tensor, Tensor]) -> None:
    image, tokens = request_of_three
    longer = torch.cat((tokens, torch.zeros(3, 6, dtype=torch.int64)), dim=1)
    assert torch.allclose(network(image, tokens), network(image, longer), atol=1e-4)


@torch.inference_mode()
def test_relations_of_an_image_serve_all_its_phrases(
    network: SegVLM, request_of_three: tuple[Tensor, Tensor]
) -> None:
    image, tokens = request_of_three
    pyramid = network.encode_image(image[:1])
    relations = network.relate_objects(pyramid[0], pyramid[1]).of(torch.zeros(3, dtype=torch.int64))
    levels = [level.expand(3, *level.shape[1:]) for level in pyramid]
    text = network.encode_text(tokens)
    at_hand = network.decode_parts(*levels, *text, relations=relations).logits
    assert torch.allclose(at_hand, network.decode(*levels, *text), atol=1e-5)


@torch.inference_mode()
def test_the_answer_is_made_of_its_parts(
    network: SegVLM, request_of_three: tuple[Tensor, Tensor]
) -> None:
    image, tokens = request_of_three
    parts = network.decode_parts(*network.encode_image(image), *network.encode_text(tokens))
    assert parts.class_logits is not None and parts.selection is not None
    assert torch.allclose(parts.logits, both(parts.class_logits, parts.selection))
    assert parts.logits.shape == (3, 16, 16)
    assert parts.anchor is not None
    assert torch.allclose(parts.anchor.exp().sum(1), torch.ones(3), atol=1e-5)


def test_the_picture_s_own_colours_reach_the_second_map(network: SegVLM) -> None:
    """A yellow picture is yellow in every place, and nothing but yellow."""
    image = torch.full((1, 64, 64, 3), 255, dtype=torch.uint8)
    image[..., 2] = 0
    p3, p4, _ = network.encode_image(image)
    seen = relate(p3[:, -RGB - GEOMETRY :], p4[:, -GEOMETRY:])
    yellow = 15 * 4  # red and green at their highest of four levels, blue at its lowest
    assert (seen.colours.argmax(2) == yellow).all()
    assert seen.colours[..., yellow].min() > 0.6


def test_colour_shares_add_up_and_tell_colours_apart() -> None:
    rgb = torch.rand(2, 3, 4, 6) * 2 - 1
    shares = colour_shares(rgb)
    assert shares.shape == (2, 2 * 3, 64)
    assert torch.allclose(shares.sum(2), torch.ones(2, 6), atol=1e-5)
    red, blue = (
        torch.tensor(c).view(1, 3, 1, 1).expand(1, 3, 2, 2)
        for c in ((1.0, -1.0, -1.0), (-1.0, -1.0, 1.0))
    )
    assert (colour_shares(red) * colour_shares(blue)).sum() < 0.01


def test_a_place_of_stride_16_has_the_colours_of_its_own_four() -> None:
    rgb = torch.rand(1, 3, 4, 6) * 2 - 1
    square = colour_shares(rgb[:, :, 2:4, 4:6])
    assert torch.allclose(colour_shares(rgb)[:, 1 * 3 + 2], square[:, 0], atol=1e-6)


def test_the_features_of_an_anchor_are_what_they_are_called() -> None:
    """0.1 x 0.4 at (0.2, 0.5), with attention wholly on 0.3 x 0.2 at (0.6, 0.4)."""
    values = [(0.2, 0.6), (0.5, 0.4), (0.1, 0.3), (0.4, 0.2), (-1.6, -1.4)]
    at = Places(*(torch.tensor([each]) for each in values))
    found = anchor_features(at, torch.tensor([[0.0, 1.0]]))[0, 0]
    dx, dy = 0.2 - 0.6, 0.5 - 0.4
    gap_x, gap_y = 0.4 - 0.5 * (0.1 + 0.3), 0.1 - 0.5 * (0.4 + 0.2)
    within = max(0.4 - 0.5 * (0.3 - 0.1), 0.1 - 0.5 * (0.2 - 0.4))
    distance = math.hypot(dx, dy)
    expected = [
        dx,
        dy,
        distance,
        math.tanh(8 * gap_x),
        math.tanh(8 * gap_y),
        math.tanh(8 * within),
        math.tanh(dx / 0.05),
        math.tanh(dy / 0.05),
        abs(dx) - abs(dy),
        math.exp(-0.5 * (distance / 0.08) ** 2),
        4 * max(gap_x, gap_y),
    ]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-4)


def test_gradients_reach_everything_but_what_has_a_loss_of_its_own(
    network: SegVLM, request_of_three: tuple[Tensor, Tensor]
) -> None:
    """The selection's loss must not bend the geometry, nor the class's map."""
    image, tokens = request_of_three
    parts = network.decode_parts(*network.encode_image(image), *network.encode_text(tokens))
    assert parts.selection is not None
    parts.selection.square().mean().backward()
    touched = {
        name.split(".")[0]
        for name, each in network.named_parameters()
        if each.grad is not None and each.grad.abs().max() > 0
    }
    assert {"selection", "reader", "text_encoder", "neck"} <= touched
    assert not {"geometry", "decoder", "projector"} & touched
    network.zero_grad()
