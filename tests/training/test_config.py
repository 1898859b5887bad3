"""The typed configuration: what is refused, and that the project's own files load."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.config import config_from_dict, load_config
from training.trainer import learning_rate_factor

LITE = Path("training/configs/segvlm_lite.yaml")


def test_every_config_of_the_project_loads(repo_root: Path) -> None:
    paths = sorted((repo_root / "training" / "configs").glob("*.yaml"))
    assert repo_root / LITE in paths
    for path in paths:
        assert load_config(path).optim.steps > 0


def test_an_override_replaces_one_value(repo_root: Path) -> None:
    plain = load_config(repo_root / LITE)
    changed = load_config(repo_root / LITE, ["optim.lr=0.5", "data.augment.flip=0"])
    assert (changed.optim.lr, changed.data.augment.flip) == (0.5, 0.0)
    assert changed.model == plain.model
    assert changed.data.augment.crop == plain.data.augment.crop


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("optim.learning_rate=1", "optim.learning_rate"),
        ("optimizer.lr=1", "optimizer"),
        ("data.augment.flop=1", "data.augment.flop"),
        ("optim.steps=many", "optim.steps"),
        ("optim.precision=fp8", "optim.precision"),
        ("optim.steps=0", "optim.steps"),
        ("data.sizes=[[0.5, 320]]", "data.sizes"),
        ("data.sizes=[[0, 300]]", "data.sizes"),
        ("model.preset=segvlm-large", "model.preset"),
        ("loss.focal_alpha=2", "focal_alpha"),
        ("optim.lr", "section.key=value"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(repo_root: Path, override: str, named: str) -> None:
    with pytest.raises(ValueError, match=named.replace(".", r"\.")):
        load_config(repo_root / LITE, [override])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


def test_schedules() -> None:
    cosine = config_from_dict(
        {"optim": {"steps": 110, "warmup_steps": 10, "schedule": "cosine"}}
    ).optim
    factors = [learning_rate_factor(step, cosine) for step in range(110)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[10] == 1.0
    assert factors[60] == pytest.approx(0.5)
    assert factors[11:] == sorted(factors[11:], reverse=True)
    assert 0 < factors[-1] < 0.001
    # The paper: 50 epochs, x0.1 at epochs 15 and 30.
    paper = config_from_dict(
        {"optim": {"steps": 50, "schedule": "step", "milestones": [0.3, 0.6], "decay": 0.1}}
    ).optim
    steps = [learning_rate_factor(step, paper) for step in (0, 14, 15, 29, 30, 49)]
    assert steps == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
