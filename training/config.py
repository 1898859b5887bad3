"""The typed configuration of a training run, read from YAML.

A run is one YAML file plus `section.key=value` overrides. Unknown keys and wrong types are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from model.config import PRESETS, preset_config

from .losses import RafConfig
from .object_losses import ObjectLossConfig


@dataclass(frozen=True)
class ModelSection:
    """Which network, and what it starts from."""

    preset: str = "segvlm-rn101"
    overrides: dict[str, Any] = field(default_factory=dict)
    """Fields of `model.config.SegVLMConfig` to replace, the ablation's switches among them."""
    init: str = "none"
    """Start: "none", or what `import_weights.initial_model` takes: imagenet, RN101, a file, a
    bundle's directory."""
    frozen: tuple[str, ...] = ()
    """Parts that stay as they start, weights and statistics, by the beginnings of their names,
    e.g. [image_encoder.]"""
    frozen_statistics: bool = False
    """Batch norms keep the statistics that they start with and normalise by them, as they will
    where the network answers, instead of by each batch's own."""

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ValueError(f"model.preset must be one of {', '.join(PRESETS)}")


@dataclass(frozen=True)
class AugmentSection:
    """Probabilities and strengths; the paper has none of them, so all are off by default."""

    flip: float = 0.0
    """Probability of a mirror image; "left" and "right" change places in the expression."""
    crop: float = 0.0
    """Probability of a random crop; only expressions that stay true under a crop are kept."""
    jitter: float = 0.0
    """Strength of brightness, contrast and saturation changes, 0.2 = up to 20 %; never hue."""

    def __post_init__(self) -> None:
        if not all(0 <= value <= 1 for value in (self.flip, self.crop, self.jitter)):
            raise ValueError("data.augment.flip, crop and jitter must lie in 0..1")


@dataclass(frozen=True)
class MixSection:
    """A further store to train on."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    store: str
    split: str = "train"
    weight: float = 1.0
    """How much of it, relative to the main store's 1.0: its share of every epoch is its weight
    over 1 + the sum of all weights."""

    def __post_init__(self) -> None:
        if not 0 < self.weight < math.inf:
            raise ValueError(
                f"the weight of {self.store!r} in data.mix must be above 0, not {self.weight}; "
                "to leave a store out, take it from the list"
            )


@dataclass(frozen=True)
class DataSection:
    """What is read, and how a batch is made."""

    store: str = ""
    """Directory that `python -m training prepare` wrote."""
    train_split: str = "train"
    val_split: str = "val"
    images_per_batch: int = 8
    """Of the whole batch, over all processes and micro-batches."""
    phrases_per_image: int = 1
    """An image is encoded once for so many of its expressions."""
    epoch: Literal["phrases", "images"] = "phrases"
    """An epoch passes over every phrase once, or over every image with some of its phrases."""
    mix: tuple[MixSection, ...] = ()
    exclude: tuple[str, ...] = ()
    """Further stores whose held-out photos must not train (those of `store` and `mix` never do)."""
    sizes: tuple[tuple[float, int], ...] = ()
    """Input sides by share of the run, e.g. [[0, 256], [0.5, 320]]; empty: the model's own."""
    workers: int = 0
    siblings: float = 0.0
    """Share of images whose phrases come class by class, those that tell siblings apart first; the
    others' are drawn at random."""
    absent: int = 0
    """Phrases beside an image's own that name a class which is certainly not in it, where its
    source tells (`data.absent_phrases`): the answer to them is an empty mask."""
    augment: AugmentSection = field(default_factory=AugmentSection)

    def __post_init__(self) -> None:
        if self.images_per_batch < 1 or self.phrases_per_image < 1 or self.workers < 0:
            raise ValueError("data.images_per_batch and phrases_per_image must be 1 or more")
        if not 0 <= self.siblings <= 1:
            raise ValueError("data.siblings must lie in 0..1")
        if self.absent < 0:
            raise ValueError("data.absent must be 0 or more")
        if any(size % 32 or not 0 <= share < 1 for share, size in self.sizes):
            raise ValueError("data.sizes must hold [share in 0..1, multiple of 32] pairs")
        if self.sizes and self.sizes[0][0] != 0:
            raise ValueError("data.sizes must start at share 0")
        if self.val_split.lower().startswith("test"):
            raise ValueError(
                f"data.val_split must not be {self.val_split!r}: a checkpoint chosen on a test "
                "split makes its score worthless"
            )


@dataclass(frozen=True)
class OptimSection:
    """Optimiser, schedule, precision. The length of a run is given in epochs or in steps."""

    epochs: float | None = None
    """Passes over the data; see `data.epoch`."""
    steps: int | None = None
    """Updates of the weights."""
    lr: float = 1e-4
    backbone_lr_factor: float = 0.1
    """Of the pre-trained part's learning rate, from the first step on."""
    weight_decay: float = 0.0
    optimizer: Literal["adam", "adamw"] = "adam"
    schedule: Literal["constant", "cosine", "poly", "step"] = "constant"
    milestones: tuple[float, ...] = ()
    """Where the "step" schedule multiplies by `decay`: in epochs, or in steps as the length is."""
    decay: float = 0.1
    power: float = 0.9
    """Of the "poly" schedule, (1 - share of the run) ** power."""
    warmup_steps: int = 0
    clip_norm: float = 0.0
    """Largest gradient norm; 0 switches clipping off."""
    accumulate: int = 1
    """Parts that a batch is learned in, one after the other, where it does not fit at once."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    channels_last: bool = False
    compile: bool = False
    """torch.compile: minutes at the start, faster steps after."""
    ema_decay: float = 0.0
    """Decay of the averaged weights that are validated and kept; 0 switches averaging off."""

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("set one of optim.epochs and optim.steps, and leave the other null")
        if not (self.epochs or self.steps or 0) > 0:
            raise ValueError("optim.epochs or optim.steps must be above 0")
        if not 0 <= self.ema_decay < 1:
            raise ValueError("optim.ema_decay must lie in 0..1, 1 excluded")
        if self.accumulate < 1:
            raise ValueError("optim.accumulate must be 1 or more")
        for name in ("lr", "decay", "power"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optim.{name} must be above 0, not {getattr(self, name)}")
        for name in ("backbone_lr_factor", "weight_decay", "warmup_steps", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"optim.{name} must be 0 or more, not {getattr(self, name)}")
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError("optim.milestones must rise")
        if self.schedule == "step" and not self.milestones:
            raise ValueError('optim.schedule "step" needs optim.milestones, e.g. [15, 30]')


@dataclass(frozen=True)
class RunSection:
    """Where a run lives and how often it looks up, in steps."""

    out: str = "runs/segvlm"
    seed: int = 0
    threshold: float = 0.35
    """Probability above which a pixel belongs to the mask in validation (CRIS: 0.35)."""
    log_every: int = 20
    save_every: int = 200
    validate_every: int = 500
    keep: int = 2
    """Checkpoints that stay, the newest ones."""

    def __post_init__(self) -> None:
        if min(self.log_every, self.save_every, self.validate_every, self.keep) < 1:
            raise ValueError("run.log_every, save_every, validate_every and keep must be 1 or more")
        if not 0 < self.threshold < 1:
            raise ValueError("run.threshold must lie between 0 and 1")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a run."""

    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    loss: RafConfig = field(default_factory=RafConfig)
    objects: ObjectLossConfig = field(default_factory=ObjectLossConfig)
    optim: OptimSection = field(default_factory=lambda: OptimSection(steps=1000))
    run: RunSection = field(default_factory=RunSection)

    def __post_init__(self) -> None:
        has_selection = preset_config(self.model.preset, **self.model.overrides).selection
        if self.objects.needs_selection and not has_selection:
            raise ValueError(
                "objects.class_weight, pick_weight, anchor_weight, geometry_weight and "
                "vocabulary_weight need a network with two maps; set "
                "model.overrides={selection: true}"
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file and apply `section.key=value` overrides (values in YAML).

    Raises:
        ValueError: for a missing file, an unknown key or a value of the wrong type.
    """
    if not path.is_file():
        raise ValueError(f"no configuration at {path}; training/configs/ holds the project's own")
    tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    if not isinstance(tree, dict):
        raise ValueError(f"{path} must hold sections (model, data, loss, objects, optim, run)")
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ValueError(f"an override reads section.key=value, not {override!r}")
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = yaml.safe_load(value)
    return config_from_dict(tree)


def config_from_dict(tree: dict[str, Any]) -> TrainConfig:
    """Build the typed tree.

    Raises:
        ValueError: for an unknown key or a value of the wrong type.
    """
    _refuse_unknown(TrainConfig, tree, "")
    try:
        return TypeAdapter(TrainConfig).validate_python(tree)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
            for fault in error.errors()
        )
        raise ValueError(f"the training configuration is wrong: {faults}") from None


def _refuse_unknown(kind: type, tree: dict[str, Any], prefix: str) -> None:
    known = {item.name for item in fields(kind)}
    types = get_type_hints(kind)
    for key, value in tree.items():
        if key not in known:
            raise ValueError(
                f"unknown setting {prefix}{key}; known here: {', '.join(sorted(known))}"
            )
        if is_dataclass(types[key]) and isinstance(value, dict):
            _refuse_unknown(types[key], value, f"{prefix}{key}.")
