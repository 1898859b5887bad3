"""The typed configuration: what is refused, and that the project's own files load."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.config import preset_config
from training.ablation import ROWS
from training.config import AugmentSection, config_from_dict, load_config
from training.optimisation import Schedule

LITE = Path("training/configs/segvlm_lite.yaml")


def test_every_config_of_the_project_loads(repo_root: Path) -> None:
    paths = sorted((repo_root / "training" / "configs").glob("*.yaml"))
    assert repo_root / LITE in paths
    for path in paths:
        config = load_config(path)
        assert (config.optim.steps or config.optim.epochs or 0) > 0


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
        ("optim.lr=0", "optim.lr"),
        ("optim.warmup_steps=-1", "optim.warmup_steps"),
        ("optim.clip_norm=-1", "optim.clip_norm"),
        ("optim.ema_decay=1", "optim.ema_decay"),
        ("optim.accumulate=0", "optim.accumulate"),
        ("optim.milestones=[30, 15]", "optim.milestones"),
        ("optim.schedule=step", "optim.milestones"),
        ("run.keep=0", "keep"),
        ("data.sizes=[[0.5, 320]]", "data.sizes"),
        ("data.sizes=[[0, 300]]", "data.sizes"),
        ("model.preset=segvlm-large", "model.preset"),
        ("loss.focal_alpha=2", "focal_alpha"),
        ("objects.other_weight=1", "class_weight"),
        ("optim.lr", "section.key=value"),
    ],
)
def test_a_wrong_setting_is_refused_by_its_name(repo_root: Path, override: str, named: str) -> None:
    with pytest.raises(ValueError, match=named.replace(".", r"\.")):
        load_config(repo_root / LITE, [override])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nowhere\.yaml"):
        load_config(tmp_path / "nowhere.yaml")


VARIANTS = {
    "cris_phrasecut": "baseline",
    "ablation_raf_phrasecut": "raf",
    "ablation_deformable_residual_phrasecut": "deformable-residual",
    "segvlm_phrasecut": "se",
}


@pytest.mark.parametrize(("name", "row"), VARIANTS.items())
def test_the_variants_differ_in_their_switches_alone(repo_root: Path, name: str, row: str) -> None:
    """What `ablate` makes of SegVLM's configuration is what the four files say."""
    configs = repo_root / "training" / "configs"
    base = load_config(configs / "segvlm_phrasecut.yaml")
    variant = load_config(configs / f"{name}.yaml")
    switches = next(each for each in ROWS if each.name == row)
    expected = switches.settings(base)
    expected["run"]["out"] = variant.run.out
    assert variant == config_from_dict(expected)


def test_the_variants_have_directories_of_their_own(repo_root: Path) -> None:
    configs = repo_root / "training" / "configs"
    assert len({load_config(configs / f"{name}.yaml").run.out for name in VARIANTS}) == 4


def test_the_papers_protocol(repo_root: Path) -> None:
    """Section 4, value by value."""
    config = load_config(repo_root / "training" / "configs" / "segvlm_phrasecut.yaml")
    model = preset_config(config.model.preset, **config.model.overrides)
    assert (model.image_encoder, model.image_size) == ("clip-rn101", 416)
    assert model.deformable and model.residual and model.se
    data, optim, loss = config.data, config.optim, config.loss
    assert (data.images_per_batch, data.phrases_per_image, data.epoch) == (64, 1, "phrases")
    assert data.augment == AugmentSection() and not data.mix and not data.sizes
    assert (optim.epochs, optim.optimizer, optim.lr) == (50, "adam", 1e-4)
    assert (optim.schedule, optim.milestones, optim.decay) == ("step", (15, 30), 0.1)
    assert (optim.clip_norm, optim.warmup_steps, optim.ema_decay) == (0, 0, 0)
    assert min(loss.bce_weight, loss.focal_weight, loss.dice_weight) == 1
    assert not data.val_split.startswith("test")
    # An epoch of 310,816 phrases in batches of 64; validated and saved often enough to be stopped.
    schedule = Schedule.of(optim, 310816, 64)
    assert schedule.steps == 242825
    assert config.run.validate_every == -(-310816 // 64)


def test_the_lite_recipe_stays_what_trained_the_bundle(repo_root: Path) -> None:
    """Defaults may move; what the committed weights were trained with may not."""
    config = load_config(repo_root / LITE)
    optim = config.optim
    assert (optim.steps, optim.accumulate, optim.compile) == (2500, 1, False)
    assert (optim.optimizer, optim.lr, optim.weight_decay) == ("adamw", 8e-4, 0.02)
    assert (optim.schedule, optim.warmup_steps, optim.clip_norm) == ("cosine", 150, 5.0)
    assert (optim.precision, optim.ema_decay, optim.backbone_lr_factor) == ("bf16", 0.998, 0.25)
    assert (config.data.images_per_batch, config.data.phrases_per_image) == (8, 5)
    assert config.data.epoch == "images"


@pytest.mark.parametrize("split", ["test", "testA", "Test"])
def test_a_checkpoint_is_never_chosen_on_a_test_split(repo_root: Path, split: str) -> None:
    with pytest.raises(ValueError, match="val_split"):
        load_config(repo_root / LITE, [f"data.val_split={split}"])


def test_a_run_is_as_long_as_its_epochs_or_its_steps(repo_root: Path) -> None:
    with pytest.raises(ValueError, match=r"one of optim\.epochs and optim\.steps"):
        load_config(repo_root / LITE, ["optim.epochs=2"])
    assert load_config(repo_root / LITE, ["optim.epochs=2", "optim.steps=null"]).optim.epochs == 2
    with pytest.raises(ValueError, match=r"one of optim\.epochs and optim\.steps"):
        load_config(repo_root / LITE, ["optim.steps=null"])
