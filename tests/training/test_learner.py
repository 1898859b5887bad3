"""One update: the same however its batch is cut, and dependent on nothing but the step."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from training import learner as learner_module
from training import setup
from training.config import config_from_dict
from training.learner import Learner
from training.trainer import Trainer

pytestmark = pytest.mark.long(25)


def _trainer(settings: dict[str, Any], **optim: Any) -> Trainer:
    # With 5 phrases of each image some units have 5 and some fewer, so parts differ in number.
    data = {**settings["data"], "images_per_batch": 4, "phrases_per_image": 5}
    tree = {**settings, "data": data}
    tree["optim"] = {**settings["optim"], **optim}
    return setup.build_trainer(config_from_dict(tree))


def _gradients(trainer: Trainer, step: int = 0) -> dict[str, Tensor]:
    """Gradients of the global batch `step`, and its loss under the name "loss"."""
    accumulate = trainer.config.optim.accumulate
    batches = [trainer.batches[step * accumulate + part] for part in range(accumulate)]
    phrases = sum(len(batch.tokens) for batch in batches)
    update = trainer.learner.update(step, batches, phrases)
    named = trainer.learner.model.named_parameters()
    found = {name: each.grad for name, each in named if each.grad is not None}
    return {"loss": update.terms.total, **found}


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks in float64, where the order of a sum does not show."""
    build: Callable[..., torch.nn.Module] = setup.build_model
    monkeypatch.setattr(setup, "build_model", lambda section: build(section).double())


@pytest.fixture
def fixed_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batch norms by their running statistics: those of a part are not those of the whole."""
    build: Callable[..., torch.nn.Module] = setup.build_model

    def without_training_mode(section: Any) -> torch.nn.Module:
        model = build(section).eval()
        model.train = lambda mode=True: model  # type: ignore[method-assign]
        return model

    monkeypatch.setattr(setup, "build_model", without_training_mode)


@pytest.mark.usefixtures("exact", "fixed_statistics")
def test_a_batch_in_parts_is_the_batch(tiny_run: dict[str, Any]) -> None:
    """Parts of different numbers of phrases: a mean of means would be another number."""
    whole = _trainer(tiny_run)
    parts = _trainer(tiny_run, accumulate=2)
    counts = set()
    for step in range(3):
        counts |= {len(parts.batches[2 * step + part].tokens) for part in range(2)}
        one, two = _gradients(whole, step), _gradients(parts, step)
        assert one.keys() == two.keys()
        for name, value in one.items():
            scale = value.abs().max().clamp(min=1e-9)
            assert ((value - two[name]).abs().max() / scale).item() < 1e-5, name
    assert len(counts) > 1, "parts were to differ in their numbers of phrases"


def test_an_update_depends_on_its_step_alone(tiny_run: dict[str, Any]) -> None:
    """Dropout is on; whatever drew random numbers before must not matter."""
    first, second = _trainer(tiny_run), _trainer(tiny_run)
    torch.rand(1000)
    one = _gradients(first, step=2)
    torch.manual_seed(99)
    other = _gradients(second, step=2)
    assert all(torch.equal(one[name], other[name]) for name in one)
    again = _gradients(_trainer({**tiny_run, "run": {**tiny_run["run"], "seed": 0}}), step=3)
    assert not torch.equal(one["loss"], again["loss"])


def test_a_scaler_skips_what_overflows_and_then_learns(
    tiny_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """fp16's scaler over bfloat16 arithmetic, because CPUs are slow and rough in fp16.

    A scale beyond float32 makes the first steps overflow. They change no weight and are counted;
    then gradients are unscaled before they are measured and clipped.
    """
    monkeypatch.setitem(learner_module._AUTOCAST, "fp16", torch.bfloat16)
    plain = _trainer(tiny_run, clip_norm=1.0, precision="bf16")
    learner = _trainer(tiny_run, clip_norm=1.0, precision="fp16").learner
    learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**125)
    batch = plain.batches[0]
    expected = plain.learner.update(0, [batch], len(batch.tokens)).gradient_norm.item()
    kernel = learner.model.projector.dynamic.kernel.weight
    before, norm, skipped = kernel.detach().clone(), float("nan"), 0
    for _ in range(40):
        assert torch.equal(kernel, before), "a skipped step moved the weights"
        norm = learner.update(0, [batch], len(batch.tokens)).gradient_norm.item()
        faults = learner.faults()
        assert faults.loss is None and not faults.gradients, "what the scaler skips is no fault"
        if math.isfinite(norm):
            break
        skipped += 1
        assert int(learner.skipped) == skipped
    assert norm == pytest.approx(expected, rel=0.01)
    assert not torch.equal(kernel, before)
    assert (
        learner.state()["scaler"]["scale"] == learner.scaler.get_scale() == 2.0 ** (125 - skipped)
    )
    assert learner.state()["skipped"] == skipped > 0


def test_the_backbone_is_slower_from_the_first_step(tiny_run: dict[str, Any]) -> None:
    trainer = _trainer(tiny_run, backbone_lr_factor=0.1, warmup_steps=2)
    _gradients(trainer)
    rates = {group["name"]: group["lr"] for group in trainer.learner.optimizer.param_groups}
    assert rates["head"] == pytest.approx(0.0005)
    assert rates["backbone"] == pytest.approx(0.00005)


def test_without_an_average_the_network_itself_answers(tiny_run: dict[str, Any]) -> None:
    learner: Learner = _trainer(tiny_run, ema_decay=0.0).learner
    assert learner.answering is learner.model and learner.state()["average"] is None
    averaging = _trainer(tiny_run).learner
    assert averaging.answering is not averaging.model


@pytest.mark.slow
def test_a_compiled_network_learns_the_same(
    tiny_run: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Graphs as torch.compile makes them, run without its code generator, which takes minutes.

    Batches of different numbers of phrases: the first is compiled for its number, the second for
    any. Without dropout, whose random numbers are the compiler's own.
    """
    without = {"dropout": 0.0, "text_dropout": 0.0}
    tiny_run["model"]["overrides"] |= without
    eager = functools.partialmethod(torch.nn.Module.compile, backend="aot_eager")
    monkeypatch.setattr(learner_module.TrainingForward, "compile", eager)
    plain, compiled = _trainer(tiny_run), _trainer(tiny_run, compile=True)
    counters.clear()
    counts, graphs = set(), []
    for step in range(8):
        batch = plain.batches[step]
        counts.add(len(batch.tokens))
        one = plain.learner.update(step, [batch], len(batch.tokens)).terms.total
        other = compiled.learner.update(step, [batch], len(batch.tokens)).terms.total
        graphs.append(counters["stats"]["unique_graphs"])
        if step == 0:
            assert other.item() == pytest.approx(one.item(), rel=1e-4)
    assert len(counts) > 2
    assert graphs[0] > 0 and graphs[-1] <= 2 * graphs[0], graphs
    assert compiled.learner.model.state_dict().keys() == plain.learner.model.state_dict().keys()
