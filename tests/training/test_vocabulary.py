"""Naming places: only annotated ones count, each object about as much as the other."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from model.config import SegVLMConfig, preset_config
from model.segvlm import build_segvlm
from training.vocabulary import NAMELESS, VocabularyHead, vocabulary_loss

NAMES = torch.tensor([[NAMELESS, 4, 2]])


@pytest.fixture
def objects() -> Tensor:
    """32 x 32 cells, 8 x 8 places: object 1 is 4 x 4 places, object 2 one, the rest nothing."""
    numbers = torch.zeros(1, 32, 32, dtype=torch.int64)
    numbers[0, :16, :16] = 1
    numbers[0, 24:28, 24:28] = 2
    return numbers


def gradient(objects: Tensor, scores: Tensor) -> Tensor:
    scores = scores.clone().requires_grad_()
    vocabulary_loss(scores, objects, NAMES).backward()
    assert scores.grad is not None
    return scores.grad[0]


def test_undecided_scores_cost_the_log_of_the_names(objects: Tensor) -> None:
    loss = vocabulary_loss(torch.zeros(1, 5, 8, 8), objects, NAMES)
    assert loss.item() == pytest.approx(math.log(5))
    right = torch.zeros(1, 5, 8, 8)
    right[0, 4, :4, :4] = right[0, 2, 6, 6] = 20
    assert vocabulary_loss(right, objects, NAMES).item() < 1e-6
    assert vocabulary_loss(-right, objects, NAMES).item() > 5


def test_only_places_of_objects_learn(objects: Tensor) -> None:
    found = gradient(objects, torch.zeros(1, 5, 8, 8))
    annotated = torch.zeros(8, 8, dtype=torch.bool)
    annotated[:4, :4] = annotated[6, 6] = True
    assert (found.abs().sum(0) > 0).eq(annotated).all()
    assert (found[4, :4, :4] < 0).all() and found[2, 6, 6] < 0, "the own name is pulled up"
    assert (found[0][annotated] > 0).all(), "the others are pushed down"


def test_an_object_counts_by_the_root_of_its_places(objects: Tensor) -> None:
    found = gradient(objects, torch.zeros(1, 5, 8, 8)).abs().sum(0)
    assert (found[:4, :4].sum() / found[6, 6]).item() == pytest.approx(4.0, rel=1e-5)


def test_a_place_on_the_edge_of_two_objects_is_left_out(objects: Tensor) -> None:
    objects[0, 24:26, 24:26] = 1  # one corner of the place of object 2
    assert not gradient(objects, torch.zeros(1, 5, 8, 8))[:, 6, 6].any()


def test_without_objects_it_costs_nothing() -> None:
    nothing = torch.zeros(2, 32, 32, dtype=torch.int64)
    scores = torch.randn(2, 5, 8, 8, requires_grad=True)
    loss = vocabulary_loss(scores, nothing, torch.full((2, 1), NAMELESS))
    loss.backward()
    assert loss.item() == 0 and scores.grad is not None and not scores.grad.any()


def test_the_head_reads_the_images_own_stage() -> None:
    config: SegVLMConfig = replace(preset_config("segvlm-lite"), selection=True, image_size=64)
    _, p4, p5 = build_segvlm(config).encode_image(torch.zeros(2, 64, 64, 3, dtype=torch.uint8))
    assert VocabularyHead(config, 7)(p4, p5).shape == (2, 7, 4, 4)
