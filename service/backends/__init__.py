"""Backends by name. A new one is a file beside this and a line in `_LOADERS`.

Each file is imported only when it is chosen: the CPU service has no torch.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from service.backends.base import LoadedModel, LoadOptions

# ONNX Runtime reports its use to its maker unless it finds this when it is imported.
os.putenv("ORT_DISABLE_TELEMETRY", "1")


def _load_onnx(bundle: Path, options: LoadOptions) -> LoadedModel:
    from service.backends.onnx import load_onnx

    return load_onnx(bundle, options)


def _load_torch(bundle: Path, options: LoadOptions) -> LoadedModel:
    from service.backends.torch import load_torch

    return load_torch(bundle, options)


def _load_torchscript(bundle: Path, options: LoadOptions) -> LoadedModel:
    from service.backends.torchscript import load_torchscript

    return load_torchscript(bundle, options)


def _load_fake(bundle: Path, options: LoadOptions) -> LoadedModel:
    from service.backends.fake import load_fake

    return load_fake(options=options)


_LOADERS: dict[str, Callable[[Path, LoadOptions], LoadedModel]] = {
    "onnx": _load_onnx,
    "torch": _load_torch,
    "torchscript": _load_torchscript,
    "fake": _load_fake,
}

BACKENDS = tuple(_LOADERS)


def load_model(backend: str, bundle: Path, options: LoadOptions) -> LoadedModel:
    """Load `bundle` for the backend of that name; it is not warm yet.

    Raises ValueError that names the remedy: for an unknown backend, a device or a precision that
    it does not have, a package that is not installed; BundleError (a ValueError) for a bundle that
    is damaged, foreign, or without the files that the backend needs.
    """
    if backend not in _LOADERS:
        raise ValueError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    try:
        return _LOADERS[backend](bundle, options)
    except ModuleNotFoundError as error:
        extra = "serve" if backend == "onnx" and error.name == "onnxruntime" else "serve-gpu"
        raise ValueError(
            f"backend {backend} needs the Python package {error.name}, which is not installed; "
            f"`pip install 'segvlm[{extra}]'` brings all that it needs, or choose another backend"
        ) from error
