"""The three stages of a bundle, whatever runs them: their names, files and company. No torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from model.bundle import Bundle, BundleError
from model.probe import Probe
from service.backends.base import Backend, LoadedModel, ModelSpec, Precision

PROBE_FILE = "probe.npz"
PYRAMID = ("p3", "p4", "p5")
TEXT = ("words", "state", "pad_mask")


class Stage(NamedTuple):
    """One graph of a bundle: the stem of its file, and what goes in and comes out in that order."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


STAGES = (
    Stage("image_encoder", ("image",), PYRAMID),
    Stage("text_encoder", ("tokens",), TEXT),
    Stage("mask_decoder", (*PYRAMID, *TEXT), ("logits",)),
)


def onnx_files(bundle: Bundle, precision: Precision) -> tuple[Path, ...]:
    """The ONNX file of each of `STAGES`. Raises BundleError if it has none of this precision."""
    names = _onnx_names(bundle, precision)
    if not has_onnx_files(bundle, precision):
        raise BundleError(
            f"bundle {bundle.path} has no complete set of {precision} graphs, only "
            f"{', '.join(sorted(bundle.config.files))}; export it with them, or choose precision "
            "auto, which takes what there is"
        )
    return tuple(map(bundle.file, names))


def has_onnx_files(bundle: Bundle, precision: Precision) -> bool:
    """Whether `onnx_files` would find them all."""
    return bundle.config.files.keys() >= set(_onnx_names(bundle, precision))


def _onnx_names(bundle: Bundle, precision: Precision) -> list[str]:
    """The text encoder may have nothing to gain from int8; then its float32 graph stands in."""
    kind = "" if precision == "fp32" else f".{precision}"
    names = [f"{stage.name}{kind}.onnx" for stage in STAGES]
    return [
        "text_encoder.onnx"
        if name == "text_encoder.int8.onnx" and name not in bundle.config.files
        else name
        for name in names
    ]


def complete(bundle: Bundle, backend: Backend[Any]) -> LoadedModel:
    """`backend` with what else the bundle holds for the service.

    Raises BundleError if the tokenizer or the probe cannot be read or are of another model.
    """
    config = bundle.config
    try:
        probe = Probe.load(bundle.file(PROBE_FILE))
    except BundleError:
        raise
    except ValueError as error:
        raise BundleError(f"bundle {bundle.path}: {error}; export the bundle again") from error
    spec = ModelSpec(
        name=config.name,
        version=config.version,
        image_size=config.image_size,
        word_length=config.word_length,
        threshold=config.threshold,
    )
    return LoadedModel(spec, backend, bundle.tokenizer(), probe)
