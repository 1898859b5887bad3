"""From a configuration to a trainer that is ready to run."""

from __future__ import annotations

from pathlib import Path

import torch

from model.config import preset_config
from model.segvlm import SegVLM, build_segvlm
from model.tokenizer import clip_tokenizer

from .config import ModelSection, TrainConfig
from .data.lmdb_store import PhraseStore
from .import_weights import initial_model
from .trainer import Trainer


def pick_device() -> torch.device:
    """The first GPU, or the CPU where there is none."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def build_model(section: ModelSection) -> SegVLM:
    """The network with the weights that `section.init` names; prints what was loaded.

    Raises:
        ValueError: if the weights are absent or do not fit the preset.
    """
    config = preset_config(section.preset, **section.overrides)
    if section.init == "none":
        return build_segvlm(config)
    model, report = initial_model(config, section.init)
    print(report, flush=True)
    return model


def build_trainer(config: TrainConfig) -> Trainer:
    """Open the store, build the network and put a trainer around them.

    Raises:
        ValueError: if the store is absent or unfinished, or the weights do not fit.
    """
    if not config.data.store:
        raise ValueError(
            "data.store is not set; make one with `python -m training prepare` and pass "
            "data.store=DIR"
        )
    store = PhraseStore(Path(config.data.store))
    torch.manual_seed(config.run.seed)
    return Trainer(config, build_model(config.model), clip_tokenizer(), store, pick_device())
