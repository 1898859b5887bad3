"""Runs of a network with two maps: its stages learn, resume and leave alone what is frozen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint import load
from training.config import config_from_dict, load_config
from training.setup import build_trainer

_WEIGHTS = {
    "sibling_weight": 2.0,
    "class_weight": 1.0,
    "pick_weight": 1.0,
    "anchor_weight": 0.3,
    "geometry_weight": 1.0,
    "vocabulary_weight": 0.5,
}


def _run(tiny_run: dict[str, Any], **objects: Any) -> dict[str, Any]:
    model = tiny_run["model"]
    overrides = {**model["overrides"], "selection": True}
    data = {**tiny_run["data"], "siblings": 0.8, "epoch": "images"}
    return {
        **tiny_run,
        "model": {**model, "overrides": overrides},
        "data": data,
        "objects": objects,
    }


@pytest.mark.parametrize(
    "objects",
    [
        _WEIGHTS,
        {**_WEIGHTS, "class_shared": True, "other_weight": 2.0},
        {**_WEIGHTS, "class_weight": 0.0, "class_given": True},
    ],
    ids=["every map", "shared", "given"],
)
def test_it_learns_and_goes_on(tiny_run: dict[str, Any], objects: dict[str, Any]) -> None:
    """Stopped after three steps and gone on with, the weights are those of a run of six."""
    whole = build_trainer(config_from_dict(_run(tiny_run, **objects)))
    whole.run()
    expected = load(whole.files.out / "last.safetensors").state_dict()

    settings = _run(tiny_run, **objects)
    settings["run"] = {**settings["run"], "out": settings["run"]["out"] + "-stopped"}
    first = build_trainer(config_from_dict(settings))
    steps = first.learner.update

    def stop_after_three(step: int, *arguments: Any) -> Any:
        if step == 2:
            first.asked_to_stop = 0.0
        return steps(step, *arguments)

    first.learner.update = stop_after_three  # type: ignore[method-assign]
    first.run()
    assert first.step == 3
    build_trainer(config_from_dict(settings)).run()
    found = load(first.files.out / "last.safetensors").state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_answer_may_leave_the_class_map_alone(tiny_run: dict[str, Any]) -> None:
    """Apart, the class map moves as the class's own loss moves it, whatever the answer costs."""

    def gradient(**objects: Any) -> torch.Tensor:
        trainer = build_trainer(config_from_dict(_run(tiny_run, **{**_WEIGHTS, **objects})))
        batch = trainer.batches[0]
        trainer.learner.update(0, [batch], len(batch.tokens))
        found = trainer.learner.model.projector.dynamic.kernel.weight.grad
        assert found is not None
        return found

    apart = {"class_apart": True}
    assert torch.equal(gradient(**apart), gradient(**apart, sibling_weight=9.0))
    assert not torch.equal(gradient(), gradient(sibling_weight=9.0))


def test_terms_are_logged(tiny_run: dict[str, Any]) -> None:
    trainer = build_trainer(config_from_dict(_run(tiny_run, **_WEIGHTS)))
    batch = trainer.batches[0]
    update = trainer.learner.update(0, [batch], len(batch.tokens))
    assert update.object_terms.by_class > 0
    assert update.object_terms.pick > 0
    assert update.object_terms.geometry > 0
    assert update.object_terms.vocabulary > 0
    raf = update.terms.bce + update.terms.focal + update.terms.dice
    extra = sum(
        _WEIGHTS[name] * term
        for name, term in zip(
            (
                "class_weight",
                "pick_weight",
                "anchor_weight",
                "geometry_weight",
                "vocabulary_weight",
            ),
            update.object_terms,
            strict=True,
        )
    )
    assert update.terms.total.item() == pytest.approx(float(raf + extra), rel=1e-4)
    trainer.meter.count(update, len(batch.tokens))
    row = trainer.meter.row(update, trainer.learner)
    assert row["pick"] == pytest.approx(update.object_terms.pick.item())


def test_frozen_parts_stay_as_they_are(tiny_run: dict[str, Any]) -> None:
    """Weights and statistics: the norms of a frozen part must not follow the batches."""
    settings = _run(tiny_run, **_WEIGHTS)
    settings["model"] = {**settings["model"], "frozen": ["image_encoder.", "neck."]}
    settings["optim"] = {**settings["optim"], "ema_decay": 0.0}
    trainer = build_trainer(config_from_dict(settings))
    before = {name: value.clone() for name, value in trainer.learner.model.state_dict().items()}
    for step in range(3):
        batch = trainer.batches[step]
        trainer.learner.update(step, [batch], len(batch.tokens))
    moved = {
        name.split(".")[0]
        for name, value in trainer.learner.model.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert not {"image_encoder", "neck"} & moved
    assert {"decoder", "projector", "selection", "geometry", "reader"} <= moved


def test_frozen_statistics_stay_while_weights_learn(tiny_run: dict[str, Any]) -> None:
    def learned(**model: Any) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        settings = _run(tiny_run, **_WEIGHTS)
        settings["model"] = {**settings["model"], **model}
        trainer = build_trainer(config_from_dict(settings))
        network = trainer.learner.model
        before = {name: each.clone() for name, each in network.state_dict().items()}
        batch = trainer.batches[0]
        trainer.learner.update(0, [batch], len(batch.tokens))
        return before, network.state_dict()

    before, after = learned(frozen_statistics=True)
    counters = {name for name in before if name.endswith("num_batches_tracked")}
    norms = {name.rpartition(".")[0] for name in counters}
    assert len(norms) > 20
    for norm in norms:
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            assert torch.equal(before[f"{norm}.{name}"], after[f"{norm}.{name}"]), norm
    moved = [
        norm for norm in norms if not torch.equal(before[f"{norm}.bias"], after[f"{norm}.bias"])
    ]
    assert len(moved) > 0.9 * len(norms), "their own weights learn"

    before, after = learned()
    assert not torch.equal(
        before["neck.refine.1.running_mean"], after["neck.refine.1.running_mean"]
    )


def test_freezing_nothing_by_a_wrong_name_is_refused(tiny_run: dict[str, Any]) -> None:
    settings = _run(tiny_run)
    settings["model"] = {**settings["model"], "frozen": ["backbone."]}
    with pytest.raises(ValueError, match=r"no part begins with 'backbone\.'"):
        build_trainer(config_from_dict(settings))


def test_object_losses_without_a_second_map_are_refused(tiny_run: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"selection: true"):
        config_from_dict({**tiny_run, "objects": {"pick_weight": 1.0}})
    with pytest.raises(ValueError, match=r"selection: true"):
        config_from_dict({**tiny_run, "objects": {"vocabulary_weight": 1.0}})
    assert config_from_dict({**tiny_run, "objects": {"sibling_weight": 1.0}}).objects.enabled


def test_siblings_alone_need_no_second_map(tiny_run: dict[str, Any]) -> None:
    """More weight on a sibling's pixels is a larger loss where the mask spills onto it."""
    plain = build_trainer(config_from_dict(tiny_run))
    heavier = build_trainer(config_from_dict({**tiny_run, "objects": {"sibling_weight": 20.0}}))
    batches = [trainer.batches[0] for trainer in (plain, heavier)]
    assert torch.equal(batches[0].targets, batches[1].targets)
    losses = [
        trainer.learner.update(0, [batch], len(batch.tokens)).terms
        for trainer, batch in zip((plain, heavier), batches, strict=True)
    ]
    assert losses[0].bce != losses[1].bce


def test_going_on_from_a_checkpoint_without_the_second_map(tiny_run: dict[str, Any]) -> None:
    old = build_trainer(config_from_dict(tiny_run))
    old.run()
    weights = old.files.out / "last.safetensors"
    settings = _run(tiny_run, **_WEIGHTS)
    settings["model"] = {**settings["model"], "init": str(weights)}
    settings["run"] = {**settings["run"], "out": settings["run"]["out"] + "-on"}
    state = build_trainer(config_from_dict(settings)).learner.model.state_dict()
    for name, value in load(weights).state_dict().items():
        assert torch.equal(state[name], value), name
    assert any(name.startswith("selection.") for name in state)


def test_the_recipes_can_be_read(repo_root: Path) -> None:
    for name in ("segvlm_lite_selection", "segvlm_lite_listening"):
        config = load_config(repo_root / "training" / "configs" / f"{name}.yaml")
        assert config.objects.enabled and config.model.overrides["selection"]
