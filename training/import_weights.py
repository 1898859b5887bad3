"""Weights that others trained, as a checkpoint of ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from model import checkpoint
from model.bundle import Bundle
from model.config import SegVLMConfig, preset_config
from model.image_encoder import EfficientNetLite0
from model.import_report import ImportReport, import_tensors
from model.pretrained import load_imagenet_lite0
from model.segvlm import SegVLM, build_segvlm
from model.weight_files import read_weights

from .bundle_weights import network_of
from .data.dataset import real_requests
from .data.lmdb_store import PhraseStore

IMAGENET = "imagenet"
_PHOTOS = 32


def import_weights(
    preset: str, source: str, out: Path, data: Path | None = None
) -> ImportReport | str:
    """Make a checkpoint of `preset` from weights that others trained, or from a bundle.

    Args:
        preset: see `model.config.PRESETS`.
        source: see `initial_model`; or a bundle's directory, see `bundle_weights`.
        out: the safetensors file to write; overwritten if it exists.
        data: for a bundle, a store whose photos its norms take their statistics of.

    Returns:
        What was loaded, made new and left over; `str` of it is for people.

    Raises:
        ValueError: if the weights cannot be had or do not fit the preset.
    """
    if (Path(source) / "config.json").is_file():
        return _from_bundle(preset, Path(source), out, data)
    model, report = initial_model(preset_config(preset), source)
    checkpoint.save(model, out)
    return report


def _from_bundle(preset: str, source: Path, out: Path, data: Path | None) -> str:
    bundle = Bundle.load(source)
    config = bundle.config
    if config.preset != preset or data is None:
        raise ValueError(
            f"{source} is a bundle of {config.preset}; give --preset {config.preset}, and with "
            "--data a phrase store with photos for the statistics of its norms"
        )
    photos = real_requests(
        PhraseStore(data), bundle.tokenizer(), config.image_size, config.word_length, _PHOTOS
    )
    model = network_of(bundle, *map(torch.from_numpy, photos))
    checkpoint.save(model, out)
    return f"{source}: {config.name} {config.version}, statistics of {len(photos[0])} photos"


def initial_model(config: SegVLMConfig, source: str) -> tuple[SegVLM, ImportReport]:
    """A network that starts from weights that others trained.

    Args:
        config: the sizes; they decide which weights fit.
        source: a checkpoint of ours (parts that it lacks are made new), a file of CRIS or CLIP
            weights, the name of a CLIP model (`model.weight_files`), or `imagenet` for the backbone
            of `segvlm-lite`.

    Raises:
        ValueError: if the weights cannot be had or do not fit.
    """
    if source == IMAGENET:
        model = build_segvlm(config)
        if not isinstance(model.image_encoder, EfficientNetLite0):
            raise ValueError(
                f"preset {config.preset} starts from CLIP, not from ImageNet; give a file of CLIP "
                "weights or a name such as RN101"
            )
        report = load_imagenet_lite0(model.image_encoder)
        loaded = tuple(f"image_encoder.trunk.{name}" for name in report.loaded)
        made_new = tuple(sorted(set(model.state_dict()) - set(loaded)))
        return model, replace(report, loaded=loaded, made_new=made_new)
    if checkpoint.is_ours(Path(source)):
        return _from_ours(config, Path(source))
    state_dict = read_weights(source)
    is_cris = any(".visual." in name for name in state_dict)
    importer = checkpoint.from_cris if is_cris else checkpoint.from_clip
    return importer(state_dict, config)


def _from_ours(config: SegVLMConfig, path: Path) -> tuple[SegVLM, ImportReport]:
    """Go on from a checkpoint whose network may lack parts of this one."""
    theirs, model = checkpoint.load(path), build_segvlm(config)
    tensors, wanted = theirs.state_dict(), model.state_dict()
    new = {name.partition(".")[0] + "." for name in wanted.keys() - tensors.keys()}
    report = import_tensors(model, tensors, source=str(path), may_be_new=new)
    return model, report
