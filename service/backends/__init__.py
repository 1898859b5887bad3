"""Backends by name. A new one is a file beside this and a line in `_LOADERS`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from service.backends.base import LoadedModel


def _load_onnx(bundle: Path, threads: int) -> LoadedModel:
    from service.backends.onnx import load_onnx  # only this backend needs ONNX Runtime

    return load_onnx(bundle, threads)


def _load_fake(bundle: Path, threads: int) -> LoadedModel:
    from service.backends.fake import load_fake

    return load_fake()


_LOADERS: dict[str, Callable[[Path, int], LoadedModel]] = {
    "onnx": _load_onnx,
    "fake": _load_fake,
}

BACKENDS = tuple(_LOADERS)


def load_model(backend: str, bundle: Path, threads: int) -> LoadedModel:
    """Load `bundle` for the backend of that name; `threads` for one inference, 0 = every core.

    Raises ValueError for an unknown name, BundleError (a ValueError) for a bad bundle.
    """
    if backend not in _LOADERS:
        raise ValueError(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    return _LOADERS[backend](bundle, threads)
