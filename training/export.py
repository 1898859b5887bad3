"""From a trained network to a bundle: every artifact made, checked against the network, joined."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime
import torch

from model.bundle import (
    GRAPH_FILES,
    PROBE_FILE,
    STAGES,
    TOKENIZER_FILE,
    TORCHSCRIPT_FILES,
    WEIGHTS_FILE,
    BundleConfig,
    write_bundle,
)
from model.checkpoint import load, save
from model.segvlm import SegVLM
from model.tokenizer import Tokenizer

from .data.lmdb_store import PhraseStore
from .exporting.errors import ExportError as ExportError
from .exporting.half_precision import export_half_precision
from .exporting.iou_loss import MOST_IOU_LOSS, REFERENCE, measure_costs
from .exporting.onnx_files import export_graphs
from .exporting.proof import Proof, RealInputs
from .exporting.quantisation import calibration_requests, export_int8
from .exporting.torchscript import export_torchscript
from .onnx_graphs import OnnxGraphs
from .predictors import GraphsPredictor
from .torch_graphs import TorchGraphs


@dataclass(frozen=True)
class Description:
    """What a bundle says of its model that the network itself does not know."""

    name: str
    version: str
    threshold: float
    """Probability above which a pixel belongs to the mask."""
    training: Mapping[str, Any]
    """JSON values: how the model was made."""
    scores: Mapping[str, Any]
    """JSON values: what evaluation measured."""


@dataclass(frozen=True)
class Artifacts:
    """What a bundle holds beside tokenizer, probe and the float32 ONNX graphs."""

    torchscript: bool = True
    safetensors: bool = True
    fp16: bool = False
    """ONNX graphs in float16, for GPUs."""
    int8: bool = False
    """ONNX graphs in int8, for CPUs."""

    @property
    def variants(self) -> tuple[str, ...]:
        """The precisions whose cost is measured."""
        return tuple(name for name in ("fp16", "int8") if getattr(self, name))


def export_bundle(
    model: SegVLM,
    tokenizer: Tokenizer,
    out: Path,
    description: Description,
    artifacts: Artifacts = Artifacts(),
    *,
    real_inputs: RealInputs | None = None,
    store: PhraseStore | None = None,
    overwrite: bool = False,
) -> BundleConfig:
    """Export `model` as the bundle `out`, and prove it equal to the network.

    Everything in float32 runs on random and `real_inputs`, in batches of 1, 3 and more; each output
    must be within 1e-3 of its largest value, the masks' IoU at least 0.999. `parity` keeps the
    differences. fp16 and int8 may lose half a point of mean IoU; `precisions` keeps what they lose.

    Args:
        model: any preset; left as it is (an evaluation-mode copy on the CPU is exported).
        tokenizer: what the model was trained with.
        out: the directory to create; an existing bundle only gives way with `overwrite`.
        real_inputs: letterboxed images (N, S, S, 3) uint8 and their expressions (N, L) int64.
        store: with train photos to calibrate int8 on and val phrases to measure fp16 and int8 on.

    Returns:
        What `config.json` holds.

    Raises:
        ExportError: if a graph holds operators that are not standard ONNX, or an artifact differs
            or loses too much, or fp16 or int8 is asked for without a store.
        model.bundle.BundleError: if the bundle cannot be written.
    """
    if out.exists() and not overwrite:
        raise ExportError(f"{out} exists; choose another directory, or allow overwriting")
    if artifacts.variants and store is None:
        raise ExportError(
            f"{' and '.join(artifacts.variants)} graphs are measured on a phrase store and there "
            "is none; name one with --data"
        )
    model = copy.deepcopy(model).cpu().float().eval()
    with tempfile.TemporaryDirectory(prefix="segvlm-export-") as folder:
        directory = Path(folder)
        proof = Proof(model, tokenizer, description.threshold, real_inputs)
        parity, precisions = _make(model, directory, artifacts, proof), {}
        if store is not None and artifacts.variants:
            parity |= _make_variants(model, tokenizer, directory, artifacts, proof, store)
            predictors = _predictors(model, tokenizer, directory, artifacts)
            precisions = _costs(predictors, store, description.threshold)
        proof.probe.save(directory / PROBE_FILE)
        tokenizer.save(directory / TOKENIZER_FILE)
        files = {path.name: path for path in directory.iterdir()}
        config = _config(model, description, parity, precisions)
        return write_bundle(out, config, files, overwrite).config


def _config(
    model: SegVLM,
    description: Description,
    parity: dict[str, Any],
    precisions: dict[str, dict[str, Any]],
) -> BundleConfig:
    config = model.config
    return BundleConfig(
        name=description.name,
        version=description.version,
        preset=config.preset,
        image_size=config.image_size,
        word_length=config.word_length,
        threshold=description.threshold,
        mean=config.mean,
        std=config.std,
        training=dict(description.training),
        scores=dict(description.scores),
        parity=parity,
        precisions=precisions,
    )


def _make(model: SegVLM, directory: Path, artifacts: Artifacts, proof: Proof) -> dict[str, Any]:
    """Make everything in float32 in `directory`; `parity` of config.json."""
    versions = {"torch": torch.__version__, "onnxruntime": onnxruntime.__version__}
    export_graphs(model, directory)
    parity = {**versions, **proof.measure("the ONNX graphs", _onnx(directory))}
    if artifacts.torchscript:
        export_torchscript(model, directory)
        graphs = TorchGraphs.of_torchscript([directory / name for name in TORCHSCRIPT_FILES])
        parity["torchscript"] = proof.measure("TorchScript", graphs)
    if artifacts.safetensors:
        path = directory / WEIGHTS_FILE
        save(model, path)
        parity["safetensors"] = proof.measure(path.name, TorchGraphs.of_network(load(path)))
    return parity


def _make_variants(
    model: SegVLM,
    tokenizer: Tokenizer,
    directory: Path,
    artifacts: Artifacts,
    proof: Proof,
    store: PhraseStore,
) -> dict[str, Any]:
    """Make the variants beside the float32 graphs; `parity` of each."""
    if artifacts.fp16:
        export_half_precision(directory)
    if artifacts.int8:
        export_int8(directory, calibration_requests(store, tokenizer, model.config))
    return {
        name: proof.measure(f"the {name} ONNX graphs", _onnx(directory, name), name)
        for name in artifacts.variants
    }


def _costs(
    predictors: Mapping[str, GraphsPredictor], store: PhraseStore, threshold: float
) -> dict[str, dict[str, Any]]:
    """`precisions` of config.json, or ExportError."""
    costs = measure_costs(predictors, store, threshold)
    for name, cost in costs.items():
        if cost["iou_loss"] > MOST_IOU_LOSS:
            scores = f"{cost['mean_iou_fp32']:.4f} to {cost['mean_iou']:.4f}"
            raise ExportError(
                f"the {name} graphs lose {100 * cost['iou_loss']:.2f} points of mean IoU on "
                f"{cost['phrases']} phrases ({scores}), "
                f"more than {100 * MOST_IOU_LOSS}; nothing was written. Leave --{name} out"
            )
    return costs


def _predictors(
    model: SegVLM, tokenizer: Tokenizer, directory: Path, artifacts: Artifacts
) -> dict[str, GraphsPredictor]:
    config = model.config
    return {
        name: GraphsPredictor(
            _onnx(directory, name), tokenizer, config.image_size, config.word_length
        )
        for name in (REFERENCE, *artifacts.variants)
    }


def _onnx(directory: Path, precision: str = REFERENCE) -> OnnxGraphs:
    """The graphs of a precision; a stage without one of its own is in float32."""
    files = [directory / f"{stage}.{precision}.onnx" for stage in STAGES]
    plain = [directory / name for name in GRAPH_FILES]
    chosen = [file if file.exists() else other for file, other in zip(files, plain, strict=True)]
    return OnnxGraphs(chosen, torch.get_num_threads())
