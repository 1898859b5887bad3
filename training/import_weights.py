"""Weights that others trained, as a checkpoint of ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from model import checkpoint
from model.config import SegVLMConfig, preset_config
from model.image_encoder import EfficientNetLite0
from model.import_report import ImportReport, import_tensors
from model.pretrained import load_imagenet_lite0
from model.segvlm import SegVLM, build_segvlm
from model.weight_files import read_weights

IMAGENET = "imagenet"


def import_weights(preset: str, source: str, out: Path) -> ImportReport:
    """Make a checkpoint of `preset` from weights that others trained.

    Args:
        preset: see `model.config.PRESETS`.
        source: see `initial_model`.
        out: the safetensors file to write; overwritten if it exists.

    Returns:
        What was loaded, made new and left over; `str` of it is for people.

    Raises:
        ValueError: if the weights cannot be had or do not fit the preset.
    """
    model, report = initial_model(preset_config(preset), source)
    checkpoint.save(model, out)
    return report


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
    # It belongs to the weights before they are trained on, and is set anew for those after.
    aside = [n for n in tensors.keys() - wanted.keys() if n.startswith("optimal_threshold.")]
    tensors = {name: value for name, value in tensors.items() if name not in aside}
    report = import_tensors(model, tensors, source=str(path), may_be_new=new, left_over=aside)
    return model, report
