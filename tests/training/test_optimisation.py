"""Schedules, parameter groups, averaged weights."""

from __future__ import annotations

from typing import Any

import pytest

from training.config import OptimSection, config_from_dict
from training.optimisation import Schedule, averaged, parameter_groups
from training.setup import build_model


def _factors(optim: OptimSection, units: int = 1, batch: int = 1) -> list[float]:
    schedule = Schedule.of(optim, units, batch)
    return [schedule.factor(step) for step in range(schedule.steps)]


def test_the_papers_schedule() -> None:
    """50 epochs, x0.1 at epochs 15 and 30."""
    paper = OptimSection(epochs=50, schedule="step", milestones=(15, 30))
    factors = _factors(paper, units=8, batch=2)
    assert len(factors) == 200
    assert factors == pytest.approx([1] * 60 + [0.1] * 60 + [0.01] * 80)


def test_epochs_may_end_in_the_middle_of_a_batch() -> None:
    schedule = Schedule.of(OptimSection(epochs=3, schedule="step", milestones=(1,)), 5, 2)
    assert (schedule.steps, schedule.milestones) == (8, (3,))
    assert Schedule.of(OptimSection(epochs=0.5), 3, 1).steps == 2


@pytest.mark.parametrize("batch", range(1, 100))
def test_whole_epochs_of_whole_batches_take_no_step_more(batch: int) -> None:
    """In floating point 49 * (1 / 49) < 1 and 3 * (7 / 30 * ...) may be above: order matters."""
    for epochs in (1, 3, 7, 49):
        units = 11 * batch
        assert Schedule.of(OptimSection(epochs=epochs), units, batch).steps == 11 * epochs


def test_steps_count_milestones_in_steps() -> None:
    optim = OptimSection(steps=4, schedule="step", milestones=(1, 3), decay=0.5)
    assert _factors(optim, units=100) == [1, 0.5, 0.5, 0.25]


def test_cosine_and_warm_up() -> None:
    factors = _factors(OptimSection(steps=110, warmup_steps=10, schedule="cosine"))
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert factors[10] == 1.0
    assert factors[60] == pytest.approx(0.5)
    assert factors[11:] == sorted(factors[11:], reverse=True)
    assert 0 < factors[-1] < 0.001


def test_poly() -> None:
    factors = _factors(OptimSection(steps=100, schedule="poly", power=2.0))
    assert factors[0] == 1 and factors[50] == pytest.approx(0.25) and factors[-1] > 0
    assert _factors(OptimSection(steps=3, schedule="constant")) == [1, 1, 1]


def test_groups_hold_every_trainable_parameter_once(tiny_run: dict[str, Any]) -> None:
    config = config_from_dict(tiny_run)
    model = build_model(config.model)
    optim = OptimSection(steps=1, lr=0.001, weight_decay=0.1, backbone_lr_factor=0.5)
    groups = parameter_groups(model, optim)
    seen = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(seen) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    backbone = {id(p) for p in model.image_encoder.parameters()}
    for group in groups:
        inside = {id(p) in backbone for p in group["params"]}
        assert (
            inside == {group["base_lr"] == pytest.approx(0.0005)} == {group["name"] == "backbone"}
        )
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.1}


def test_no_average_is_no_copy(tiny_run: dict[str, Any]) -> None:
    model = build_model(config_from_dict(tiny_run).model)
    assert averaged(model, 0.0) is None
    assert averaged(model, 0.9) is not None
