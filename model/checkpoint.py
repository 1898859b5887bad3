"""Checkpoints: our own (safetensors with the configuration inside), official CRIS, CLIP."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .config import SegVLMConfig, preset_config
from .foreign_names import CLIP_SETTINGS, clip_name, cris_name
from .import_report import ImportReport, import_tensors
from .segvlm import SegVLM, build_segvlm

_METADATA_KEY = "segvlm"
# SegVLM's enhancement block beyond CRIS's 3x3 convolution.
_ENHANCEMENT_PARTS = (
    "projector.enhancement.spatial.offset.",
    "projector.enhancement.se.",
    "projector.enhancement.residual.",
)
# CLIP pools its features to one vector; these make a segmentation of them.
_NOT_IN_CLIP = ("image_encoder.attnpool.connect.", "neck.", "decoder.", "projector.")


def save(model: SegVLM, path: Path) -> None:
    """Write weights and configuration to one safetensors file, atomically.

    The configuration is JSON in the file's metadata, so that `load` needs nothing else.
    """
    metadata = {_METADATA_KEY: json.dumps(model.config.to_dict())}
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the same directory: os.replace is atomic only within one file system.
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    try:
        save_file(state, temporary, metadata=metadata)
        os.chmod(temporary, 0o644)  # mkstemp makes files that only their owner reads
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def is_ours(path: Path) -> bool:
    """Whether a file is a checkpoint that `save` wrote."""
    if path.suffix != ".safetensors" or not path.is_file():
        return False
    try:
        with safe_open(path, framework="pt") as file:
            return _METADATA_KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def load(path: Path) -> SegVLM:
    """Read what `save` wrote: the model, on the CPU, in evaluation mode.

    Raises:
        ValueError: if the file is absent, damaged, not ours, or of another architecture.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; `python -m training train` makes a checkpoint")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is not a readable safetensors file ({error}); copy or make it again"
        ) from error
    if _METADATA_KEY not in metadata:
        raise ValueError(
            f"{path} holds no SegVLM configuration; weights from elsewhere come in by "
            "`python -m training import-weights`"
        )
    try:
        config = SegVLMConfig.from_dict(json.loads(metadata[_METADATA_KEY]))
    except (TypeError, ValueError) as error:
        raise ValueError(f"the configuration inside {path} is not usable: {error}") from error
    model = build_segvlm(config)
    import_tensors(model, tensors, source=str(path))
    return model.eval()


def from_cris(
    state_dict: Mapping[str, Tensor], preset: str | SegVLMConfig
) -> tuple[SegVLM, ImportReport]:
    """A SegVLM from the `state_dict` of an official CRIS checkpoint, in evaluation mode.

    Args:
        state_dict: official names, each with or without the `module.` of data-parallel training.
        preset: `cris-rn50`, `cris-rn101`, or `segvlm-rn101`, whose enhancement block starts from
            CRIS's convolution with its further parts made new; or such a configuration.

    Raises:
        ValueError: if a name is unknown or missing, or a shape differs.
    """
    model = _build_clip_based(preset)
    source = "official CRIS checkpoint"
    tensors, _ = _rename(state_dict, cris_name, source)
    report = import_tensors(model, tensors, source=source, may_be_new=_ENHANCEMENT_PARTS)
    return model.eval(), report


def from_clip(
    state_dict: Mapping[str, Tensor], preset: str | SegVLMConfig
) -> tuple[SegVLM, ImportReport]:
    """A SegVLM on CLIP's encoders, in training mode: what fine-tuning starts from.

    Args:
        state_dict: of OpenAI's or open_clip's CLIP with the ResNet that `preset` names, any
            floating type. Its text tower must use QuickGELU, as OpenAI's and open_clip's
            `*-quickgelu` models do; the weights do not tell.
        preset: any but `segvlm-lite`, which is not made of CLIP; or such a configuration.

    Raises:
        ValueError: if a name is unknown or missing, or a shape differs.
    """
    model = _build_clip_based(preset)
    source = "CLIP weights"
    tensors, left_over = _rename(state_dict, clip_name, source)
    report = import_tensors(
        model, tensors, source=source, may_be_new=_NOT_IN_CLIP, left_over=left_over
    )
    return model, report


def _build_clip_based(preset: str | SegVLMConfig) -> SegVLM:
    config = preset_config(preset) if isinstance(preset, str) else preset
    if not config.image_encoder.startswith("clip-"):
        raise ValueError(
            f"preset {config.preset} is not built on CLIP, so CLIP and CRIS weights do not fit it; "
            "choose segvlm-rn101, cris-rn101 or cris-rn50"
        )
    return build_segvlm(config)


def _rename(
    state_dict: Mapping[str, Tensor], our_name: Callable[[str], str | None], source: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors under our names, and the names that were set aside (CLIP's sizes)."""
    tensors: dict[str, Tensor] = {}
    left_over, unknown = [], []
    for full_name, value in state_dict.items():
        name = full_name.removeprefix("module.")
        renamed = our_name(name)
        if name in CLIP_SETTINGS:
            left_over.append(name)
        elif renamed is None:
            unknown.append(full_name)
        elif renamed in tensors:
            raise ValueError(f"the {source} lists {name} twice, with and without `module.`")
        else:
            tensors[renamed] = value
    if unknown:
        raise ValueError(
            f"{len(unknown)} unknown names in the {source}: {', '.join(unknown[:5])}"
            f"{', ...' if len(unknown) > 5 else ''}; is it of another kind?"
        )
    return tensors, left_over
