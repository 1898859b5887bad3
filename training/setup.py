"""From a configuration to a trainer that is ready to run."""

from __future__ import annotations

from pathlib import Path

import torch

from model.config import preset_config
from model.segvlm import SegVLM, build_segvlm
from model.tokenizer import clip_tokenizer

from .config import ModelSection, TrainConfig
from .data.lmdb_store import PhraseStore
from .distributed import Processes, pick_device
from .import_weights import initial_model
from .trainer import Trainer


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


def build_trainer(config: TrainConfig, processes: Processes | None = None) -> Trainer:
    """Open the store, build the network and put a trainer around them.

    Args:
        processes: this one among those of the run; None for a run in this process alone.

    Raises:
        ValueError: if the store is absent or unfinished, has nothing to validate on, or the weights
            do not fit.
    """
    if not config.data.store:
        raise ValueError(
            "data.store is not set; make one with `python -m training prepare` and pass "
            "data.store=STORE"
        )
    store = PhraseStore(Path(config.data.store))
    _refuse_empty_validation(store, config.data.val_split)
    processes = processes or Processes(pick_device())
    choose_kernels(config, processes.device)
    torch.manual_seed(config.run.seed)  # the same fresh weights in every process
    return Trainer(config, build_model(config.model), clip_tokenizer(), store, processes)


def _refuse_empty_validation(store: PhraseStore, split: str) -> None:
    """Better now than after the first epoch."""
    if not any(store.phrase_count(image_id) for image_id in store.image_ids(split)):
        raise ValueError(
            f"{store.path} has no phrases in data.val_split={split}; set it to one of its splits "
            f"({', '.join(store.splits)}), or prepare the store with that split"
        )


def choose_kernels(config: TrainConfig, device: torch.device) -> None:
    """Set for the whole process what torch may do for speed in this run."""
    if device.type == "cuda":
        # Under autocast, what stays in float32 may use TF32; "highest" is torch's own default.
        mixed = config.optim.precision != "fp32"
        torch.set_float32_matmul_precision("high" if mixed else "highest")
    # Shapes that repeat are worth a search for the fastest convolution; numbers of phrases do not.
    torch.backends.cudnn.benchmark = config.data.phrases_per_image == 1
