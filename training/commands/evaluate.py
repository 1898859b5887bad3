"""python -m training evaluate: score a checkpoint, a bundle, or files of PhraseCut predictions."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

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
    from training.data.lmdb_store import PhraseStore
    from training.evaluate import MaskSink
    from training.evaluation_report import EvaluationReport
    from training.frame_rate import FrameRates
    from training.outcomes import PhraseOutcome
    from training.predictors import Predictor

LAYOUTS_TITLE = "**Layouts**, scenes with exact labels, by the same evaluation:"

_DESCRIPTION = """\
Score a model on a split of a phrase store (--checkpoint or --bundle, with --data), or PNGs of
predictions against the PhraseCut annotations (--phrasecut, with --predictions). Prints tables."""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "evaluate",
        help="score a checkpoint, a bundle, or prediction files",
        description=_DESCRIPTION,
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="safetensors of `train`")
    source.add_argument("--bundle", type=Path, help="directory of `export`")
    source.add_argument("--phrasecut", type=Path, help="VGPhraseCut_v0, to score files")
    parser.add_argument("--data", type=Path, help="the phrase store that a model is scored on")
    parser.add_argument(
        "--layouts",
        type=Path,
        metavar="STORE",
        help="a store of `prepare scenes`, scored beside --data in a section of its own",
    )
    parser.add_argument("--split", default="val")

    model = parser.add_argument_group("of a model")
    model.add_argument(
        "--threshold",
        type=float,
        help=f"default: the bundle's, else {PAPER_THRESHOLD}, or 0.5 with --optimal-threshold",
    )
    add_answer_options(model)
    add_image_size(model)
    model.add_argument("--sweep", action="store_true", help="scores by threshold; not on test")
    model.add_argument("--no-probes", action="store_true", help="only the phrases themselves")
    model.add_argument(
        "--precision",
        choices=("fp32", "bf16", "fp16", "int8"),
        help="default: fp32, or int8 of a bundle that has it, as the service on a CPU; "
        "bf16: a checkpoint on a GPU; fp16, int8: the bundle's graphs of that precision",
    )
    model.add_argument(
        "--write-predictions", type=Path, metavar="DIR", help="1-bit {task_id}.png of every phrase"
    )
    model.add_argument("--fps", action="store_true", help="frames per second; alone without --data")

    files = parser.add_argument_group("of files")
    files.add_argument("--predictions", type=Path, metavar="DIR", help="holds {task_id}.png")
    files.add_argument(
        "--missing", choices=("refuse", "zero"), default="refuse", help="phrases without a file"
    )

    out = parser.add_argument_group("output")
    out.add_argument("--json", type=Path, help="the report")
    out.add_argument("--csv", type=Path, help="a row for each phrase")
    out.add_argument("--markdown", type=Path, help="the tables that are printed")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    _check(options)
    if options.phrasecut:
        _score_files(options)
    elif options.sweep:
        _sweep(options)
    elif not options.data:
        rates = _open_model(options).frame_rates()
        _write(options, [rates.to_markdown()], (), {"frame_rate": rates.to_dict()})
    else:
        _score_model(options)


def _check(options: argparse.Namespace) -> None:
    """Refuse options that would be ignored. Raises ValueError."""
    of_model = {
        "--data": options.data,
        "--layouts": options.layouts,
        "--threshold": options.threshold is not None,
        "--selection-bias": options.selection_bias is not None,
        "--optimal-threshold": options.optimal_threshold is not None,
        "--image-size": options.image_size is not None,
        "--sweep": options.sweep,
        "--no-probes": options.no_probes,
        "--precision": options.precision is not None,
        "--write-predictions": options.write_predictions,
        "--fps": options.fps,
    }
    of_files = {"--predictions": options.predictions, "--missing": options.missing != "refuse"}
    foreign, whose = (
        (of_model, "a model (--checkpoint or --bundle)")
        if options.phrasecut
        else (of_files, "files (--phrasecut)")
    )
    for name, given in foreign.items():
        if given:
            raise ValueError(f"{name} is an option for scoring {whose}; leave it out")
    if options.phrasecut and not options.predictions:
        raise ValueError("--phrasecut needs --predictions, the folder of the PNGs")
    if options.layouts and not options.data:
        raise ValueError("--layouts stands beside --data; give a single store as --data")
    if not options.phrasecut and not options.data and not options.fps:
        raise ValueError("--data is missing; make a store with `python -m training prepare`")
    if options.sweep:
        _refuse(
            options,
            "--sweep",
            ("layouts", "threshold", "write_predictions", "fps", "csv", "markdown"),
        )
    elif options.fps and not options.data:
        _refuse(options, "--fps without --data", ("threshold", "write_predictions", "csv"))
    for path in (options.json, options.csv, options.markdown):
        if path:
            _make_folder(path.parent)  # before the work, not after it


def _refuse(options: argparse.Namespace, mode: str, names: Sequence[str]) -> None:
    for name in names:
        if getattr(options, name) is not None and getattr(options, name) is not False:
            raise ValueError(f"{mode} does not go with --{name.replace('_', '-')}")


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} cannot be made ({error.strerror}); choose another") from error


def _score_files(options: argparse.Namespace) -> None:
    from training.outcomes import report_of
    from training.phrasecut_scoring import score_files

    scores = score_files(
        options.phrasecut,
        options.split,
        options.predictions,
        zero_missing=options.missing == "zero",
    )
    report = report_of(scores.outcomes, options.split, None)
    parts = [*scores.notes(), report.to_markdown()]
    _write(options, parts, scores.outcomes, {**report.to_dict(), "files": scores.to_dict()})


def _score_model(options: argparse.Namespace) -> None:
    from training.data.lmdb_store import PhraseStore
    from training.phrasecut_scoring import PredictionWriter

    model = _open_model(options)
    store = PhraseStore(options.data)
    layouts = PhraseStore(options.layouts) if options.layouts else None
    sink = None
    if options.write_predictions:
        sink = PredictionWriter(options.write_predictions, store, options.split)
    outcomes, report = _score_store(options, model, store, sink)
    content = {**report.to_dict(), "data": store.metadata()["fingerprint"]}
    parts = [report.to_markdown()]
    if layouts is not None:
        _, beside = _score_store(options, model, layouts)
        content["layouts"] = {**beside.to_dict(), "data": layouts.metadata()["fingerprint"]}
        parts += [LAYOUTS_TITLE, beside.to_markdown()]
    if options.fps:
        rates = model.frame_rates()
        content["frame_rate"] = rates.to_dict()
        parts.append(rates.to_markdown())
    _write(options, parts, outcomes, content)


def _score_store(
    options: argparse.Namespace, model: _Model, store: PhraseStore, sink: MaskSink | None = None
) -> tuple[list[PhraseOutcome], EvaluationReport]:
    from training.absent_classes import absent_outcomes
    from training.evaluate import score_images
    from training.outcomes import report_of

    probes, where = not options.no_probes, (store, options.split, model.threshold)
    outcomes = score_images(model.predictor, *where, probes=probes, mask_sink=sink)
    absent = absent_outcomes(model.predictor, *where) if probes else []
    return outcomes, report_of(outcomes, options.split, model.threshold, absent)


def _sweep(options: argparse.Namespace) -> None:
    from training.data.lmdb_store import PhraseStore
    from training.evaluate import best_threshold, sweep

    store = PhraseStore(options.data)
    scores = sweep(_open_model(options).predictor, store, options.split)
    for value, row in scores.items():
        print(f"{value:.2f}  mean IoU {row['mean_iou']:.4f}  cumulative {row['cum_iou']:.4f}")
    best = best_threshold(scores)
    print(f"best: {best:.2f}")
    if options.json:
        curve = {f"{value:.2f}": row for value, row in scores.items()}
        content = {"split": options.split, "best_threshold": best, "sweep": curve}
        _write_json(options.json, {**content, "data": store.metadata()["fingerprint"]})


class _Model(NamedTuple):
    """What is scored, its own threshold, and how to time it."""

    predictor: Predictor
    threshold: float
    frame_rates: Callable[[], FrameRates]


def _open_model(options: argparse.Namespace) -> _Model:
    """The checkpoint or bundle that the options name, on the device that there is."""
    from model.bundle import Bundle
    from model.tokenizer import clip_tokenizer
    from training.distributed import pick_device
    from training.frame_rate import bundle_frame_rates, network_frame_rates
    from training.predictors import BundlePredictor, TorchPredictor

    threshold = options.threshold
    if options.bundle:
        refuse_answer_options(options)
        if options.precision == "bf16":
            raise ValueError("a bundle has no bf16 graphs; choose fp16 or int8, or leave it out")
        if options.image_size is not None:
            raise ValueError(
                "--image-size is for a checkpoint, a bundle's graphs have theirs; make one of that "
                "size with `export --bundle ... --image-size` and score it"
            )
        bundle = Bundle.load(options.bundle)
        return _Model(
            BundlePredictor(bundle, precision=options.precision),
            bundle.config.threshold if threshold is None else threshold,
            lambda: bundle_frame_rates(bundle, precision=options.precision),
        )
    precision = options.precision or "fp32"
    if precision in ("fp16", "int8"):
        raise ValueError(f"--precision {precision} is of a bundle's graphs; a checkpoint has bf16")
    device = pick_device()
    if precision != "fp32" and device.type != "cuda":
        raise ValueError(f"--precision {precision} needs a GPU and there is none; leave it out")
    network = open_checkpoint(options).to(device)
    if options.image_size is not None:
        set_image_size(network, options.image_size)
    predictor = TorchPredictor(network, clip_tokenizer(), device, autocast=precision != "fp32")
    return _Model(
        predictor,
        usual_threshold(network) if threshold is None else threshold,
        lambda: network_frame_rates(network, device, precision=precision),
    )


def _write(
    options: argparse.Namespace,
    parts: Sequence[str],
    outcomes: Sequence[PhraseOutcome],
    content: Mapping[str, Any],
) -> None:
    """Print the parts of the page, and write the files that the options ask for."""
    from training.outcomes import write_csv

    page = "\n\n".join(part.rstrip() for part in parts) + "\n"
    print(page, end="")
    if options.markdown:
        options.markdown.write_text(page, encoding="utf-8")
    if options.json:
        _write_json(options.json, content)
    if options.csv:
        write_csv(outcomes, options.csv)


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    from training.versions import versions

    text = json.dumps({**content, "versions": versions()}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
