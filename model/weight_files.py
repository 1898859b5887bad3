"""Reading weights that others published: files of several kinds, or CLIP models by name."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor


def read_weights(source: str) -> dict[str, Tensor]:
    """The state dict in a file, or of a CLIP model that open_clip knows by name.

    Args:
        source: a path, or `MODEL` or `MODEL:TAG` as open_clip lists them (`RN101`, which is
            `RN101:openai`; `RN50:yfcc15m`). A name is downloaded, which needs a network.

    Raises:
        ValueError: if it is neither, cannot be had, or is not a file of weights.
    """
    path = Path(source)
    return read_weight_file(path if path.exists() else _download_clip(source))


def read_weight_file(path: Path) -> dict[str, Tensor]:
    """The state dict in a safetensors file, a TorchScript archive (OpenAI's CLIP) or a torch file.

    A training checkpoint may keep it under `state_dict`. No pickled code is run.

    Raises:
        ValueError: if the file is damaged or holds anything but tensors under names.
    """
    try:
        content = _read(path)
    except (OSError, RuntimeError, EOFError, SafetensorError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"{path} is not a readable file of weights ({_first_line(error)}). If you trust it and "
            "it holds more than tensors, load it once with torch.load(..., weights_only=False) "
            "and save its state_dict alone"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds no state dict but a {type(content).__name__}")
    strange = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if strange:
        raise ValueError(
            f"{path} holds more than tensors ({', '.join(map(str, strange[:5]))}); "
            "save its state dict alone"
        )
    return dict(content)


def _read(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return load_file(path)
    if _is_torchscript(path):
        with warnings.catch_warnings():
            # Deprecated for models; OpenAI publishes CLIP in no other form.
            warnings.filterwarnings("ignore", message=".*torch.jit.load.* is deprecated")
            return torch.jit.load(path, map_location="cpu").state_dict()  # type: ignore[no-untyped-call]
    return torch.load(path, map_location="cpu", weights_only=True)


def _is_torchscript(path: Path) -> bool:
    """Both kinds of torch file are zip archives; only TorchScript ones carry constants."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _download_clip(source: str) -> Path:
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg

    name, _, tag = source.partition(":")
    settings = get_pretrained_cfg(name, tag or "openai")
    if not settings:
        raise ValueError(
            f"{source} is neither a file nor a CLIP model that open_clip knows; "
            "give a path, or a name such as RN101 or RN50:openai"
        )
    try:
        return Path(download_pretrained(settings))
    except Exception as error:  # each of its back ends raises its own kinds
        raise ValueError(
            f"the weights {source} could not be downloaded ({_first_line(error)}); "
            "fetch the file on a machine with a network and give its path"
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
