"""python -m training export: a checkpoint or a bundle -> a bundle for the service."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model.tokenizer import Tokenizer, clip_tokenizer
from training.data.lmdb_store import PhraseStore

from . import Commands
from .checkpoint_source import (
    PAPER_THRESHOLD,
    add_answer_options,
    add_image_size,
    open_checkpoint,
    refuse_answer_options,
    set_image_size,
    usual_threshold,
)

if TYPE_CHECKING:
    from model.bundle import BundleConfig
    from model.segvlm import SegVLM
    from training.export import Description

ARTIFACTS = ("onnx", "torchscript", "safetensors")


def add(commands: Commands) -> None:
    """Declare the command."""
    export = commands.add_parser("export", help="a checkpoint -> a bundle for the service")
    source = export.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="safetensors of `train`")
    source.add_argument(
        "--bundle", type=Path, help="a bundle to export again, with other artifacts for instance"
    )
    export.add_argument("--out", type=Path, required=True, help="directory to create")
    add_answer_options(export)
    add_image_size(export)
    export.add_argument("--overwrite", action="store_true")
    export.add_argument("--data", type=Path, help="phrase store: real input for the proof")

    about = export.add_argument_group("what the bundle says (default: what --bundle says)")
    about.add_argument("--name", help="default: the preset")
    about.add_argument("--version", help="default: 1")
    about.add_argument(
        "--threshold",
        type=float,
        help=f"default: {PAPER_THRESHOLD}, or 0.5 with --optimal-threshold",
    )
    about.add_argument("--scores", type=Path, help="JSON of `evaluate --json`")
    about.add_argument("--training", type=Path, help="JSON or YAML that tells how it was made")

    holds = export.add_argument_group("what the bundle holds")
    holds.add_argument(
        "--artifacts",
        nargs="+",
        choices=ARTIFACTS,
        default=ARTIFACTS,
        metavar="ARTIFACT",
        help=f"of {', '.join(ARTIFACTS)}; default: all. The ONNX graphs are in every bundle",
    )
    holds.add_argument(
        "--fp16", action="store_true", help="ONNX graphs in float16 too, for GPUs; needs --data"
    )
    holds.add_argument(
        "--int8", action="store_true", help="ONNX graphs in int8 too, for CPUs; needs --data"
    )
    holds.add_argument(
        "--half-words",
        action="store_true",
        help="round the word vectors to float16 and keep them so in the float32 graphs too: 6 MB "
        "less of segvlm-lite",
    )
    export.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from training.data.dataset import real_requests
    from training.export import Artifacts, export_bundle
    from training.exporting.half_tables import round_word_vectors

    model, tokenizer, description = _source(options)
    if options.half_words:
        round_word_vectors(model)
    store = real = None
    if options.data:
        store = PhraseStore(options.data)
        real = real_requests(store, tokenizer, model.config.image_size, model.config.word_length)
    config = export_bundle(
        model,
        tokenizer,
        options.out,
        description,
        Artifacts(
            torchscript="torchscript" in options.artifacts,
            safetensors="safetensors" in options.artifacts,
            fp16=options.fp16,
            int8=options.int8,
        ),
        real_inputs=real,
        store=store,
        overwrite=options.overwrite,
    )
    print(f"{options.out}: {config.name} {config.version}")
    for artifact in (*ARTIFACTS, "fp16", "int8"):
        _tell(artifact, config)


def _tell(artifact: str, config: BundleConfig) -> None:
    """One line of how far an artifact is from eager PyTorch, and what it costs."""
    measured = config.parity if artifact == "onnx" else config.parity.get(artifact)
    if measured is None:
        return
    kinds = [kind for kind in ("random", "real") if kind in measured]
    differences = (f"{measured[kind]['logits']:.1e} on {kind} input" for kind in kinds)
    line = f"  {artifact}: logits differ from eager PyTorch by {', '.join(differences)}"
    if cost := config.precisions.get(artifact):
        line += (
            f"; mean IoU {cost['mean_iou']:.4f} for {cost['mean_iou_fp32']:.4f} "
            f"on {cost['phrases']} phrases"
        )
    print(line)


def _source(options: argparse.Namespace) -> tuple[SegVLM, Tokenizer, Description]:
    """The network that the options name, its tokenizer, and what is said of it."""
    from model.bundle import Bundle
    from training.export import Description
    from training.exporting.recovery import network_of

    if options.bundle:
        refuse_answer_options(options)
        bundle = Bundle.load(options.bundle)
        model, tokenizer, known = network_of(bundle), bundle.tokenizer(), bundle.config
        description = Description(
            known.name, known.version, known.threshold, known.training, known.scores
        )
    else:
        model, tokenizer = open_checkpoint(options), clip_tokenizer()
        description = Description(model.config.preset, "1", usual_threshold(model), {}, {})
    if options.image_size not in (None, model.config.image_size):
        set_image_size(model, options.image_size)
        description = replace(description, scores={})  # they were measured at another size
    told = {
        "name": options.name,
        "version": options.version,
        "threshold": options.threshold,
        "scores": _read_mapping(options.scores),
        "training": _read_mapping(options.training),
    }
    given = {name: value for name, value in told.items() if value is not None}
    return model, tokenizer, replace(description, **given)


def _read_mapping(path: Path | None) -> dict[str, Any] | None:
    """A JSON or YAML file that holds a mapping."""
    import yaml

    if path is None:
        return None
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping, not a {type(content).__name__}")
    return content
