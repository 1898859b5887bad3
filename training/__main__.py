"""python -m training {prepare,preview,train,evaluate,export,import-weights}"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.bundle import Bundle
from model.config import PRESETS
from model.tokenizer import clip_tokenizer

from .data.lmdb_store import PhraseStore


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the user's mistakes end with one line and status 2."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description="Train SegVLM.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    prepare = commands.add_parser("prepare", help="COCO-format annotations -> a phrase store")
    prepare.add_argument("--annotations", type=Path, required=True, help="COCO-format JSON")
    prepare.add_argument("--images", type=Path, help="root of its file names; default: its folder")
    prepare.add_argument("--out", type=Path, required=True, help="the store to write")
    prepare.add_argument("--seed", type=int, default=0)
    prepare.set_defaults(run=_prepare)

    preview = commands.add_parser("preview", help="a sheet of phrases drawn on photos")
    preview.add_argument("--data", type=Path, required=True, help="a phrase store")
    preview.add_argument("--split", default="val")
    preview.add_argument("--count", type=int, default=20)
    preview.add_argument("--seed", type=int, default=0)
    preview.add_argument("--out", type=Path, required=True, help="the PNG to write")
    preview.set_defaults(run=_preview)

    train = commands.add_parser("train", help="train, or go on with a run that was stopped")
    train.add_argument("--config", type=Path, required=True, help="YAML, see training/configs/")
    train.add_argument("overrides", nargs="*", metavar="section.key=value")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="score a checkpoint or a bundle on a split")
    source = evaluate.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", type=Path, help="safetensors of `train`")
    source.add_argument("--bundle", type=Path, help="directory of `export`")
    evaluate.add_argument("--data", type=Path, required=True, help="a phrase store")
    evaluate.add_argument("--split", default="val")
    evaluate.add_argument("--threshold", type=float, help="default: the bundle's, else 0.35")
    evaluate.add_argument("--sweep", action="store_true", help="scores by threshold; not on test")
    evaluate.add_argument("--no-probes", action="store_true", help="only the phrases themselves")
    evaluate.add_argument("--json", type=Path, help="write the report here too")
    evaluate.set_defaults(run=_evaluate)

    export = commands.add_parser("export", help="a checkpoint -> a bundle for the service")
    export.add_argument("--checkpoint", type=Path, required=True)
    export.add_argument("--out", type=Path, required=True, help="directory to create")
    export.add_argument("--name", help="default: the preset")
    export.add_argument("--version", default="1")
    export.add_argument("--threshold", type=float, default=0.35)
    export.add_argument("--scores", type=Path, help="JSON of `evaluate --json`")
    export.add_argument("--training", type=Path, help="JSON or YAML that tells how it was made")
    export.add_argument("--data", type=Path, help="phrase store with real input for the proof")
    export.add_argument("--overwrite", action="store_true")
    export.set_defaults(run=_export)

    weights = commands.add_parser("import-weights", help="CLIP, CRIS or ImageNet -> a checkpoint")
    weights.add_argument("--preset", choices=sorted(PRESETS), required=True)
    weights.add_argument("--from", dest="source", required=True, help="file, CLIP name, imagenet")
    weights.add_argument("--out", type=Path, required=True, help="safetensors to write")
    weights.set_defaults(run=_import_weights)
    return parser


def _prepare(options: argparse.Namespace) -> None:
    from .prepare import prepare_instances

    images = options.images or options.annotations.parent
    print(prepare_instances(options.annotations, images, options.out, seed=options.seed).text())


def _preview(options: argparse.Namespace) -> None:
    from .data.preview import render_preview

    store = PhraseStore(options.data)
    drawn = render_preview(store, options.out, options.split, options.count, options.seed)
    print(f"{drawn} phrases drawn in {options.out}")


def _train(options: argparse.Namespace) -> None:
    from .config import load_config
    from .setup import build_trainer

    build_trainer(load_config(options.config, options.overrides)).run()


def _evaluate(options: argparse.Namespace) -> None:
    from model.checkpoint import load

    from .evaluate import best_threshold, evaluate, sweep
    from .predictors import BundlePredictor, Predictor, TorchPredictor
    from .setup import pick_device

    predictor: Predictor
    if options.bundle:
        bundle = Bundle.load(options.bundle)
        predictor, threshold = BundlePredictor(bundle), bundle.config.threshold
    else:
        device = pick_device()
        model = load(options.checkpoint).to(device)
        predictor, threshold = TorchPredictor(model, clip_tokenizer(), device), 0.35
    store = PhraseStore(options.data)
    if options.sweep:
        scores = sweep(predictor, store, options.split)
        for value, row in scores.items():
            print(f"{value:.2f}  mean IoU {row['mean_iou']:.4f}  cumulative {row['cum_iou']:.4f}")
        print(f"best: {best_threshold(scores):.2f}")
        return
    threshold = options.threshold or threshold
    report = evaluate(predictor, store, options.split, threshold, probes=not options.no_probes)
    print(report.to_markdown())
    if options.json:
        content = {**report.to_dict(), "data": store.metadata()["fingerprint"]}
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _export(options: argparse.Namespace) -> None:
    from model.checkpoint import load

    from .data.dataset import real_requests
    from .export import export_bundle

    model, tokenizer = load(options.checkpoint), clip_tokenizer()
    real = None
    if options.data:
        store = PhraseStore(options.data)
        real = real_requests(store, tokenizer, model.config.image_size, model.config.word_length)
    config = export_bundle(
        model,
        tokenizer,
        options.out,
        name=options.name or model.config.preset,
        version=options.version,
        threshold=options.threshold,
        training=_read_mapping(options.training),
        scores=_read_mapping(options.scores),
        real_inputs=real,
        overwrite=options.overwrite,
    )
    print(f"{options.out}: {config.name} {config.version}, equal to eager PyTorch: {config.parity}")


def _import_weights(options: argparse.Namespace) -> None:
    from .import_weights import import_weights

    print(import_weights(options.preset, options.source, options.out))


def _read_mapping(path: Path | None) -> dict[str, Any]:
    """A JSON or YAML file that holds a mapping; nothing where there is no file."""
    import yaml

    if path is None:
        return {}
    if not path.is_file():
        raise ValueError(f"there is no file {path}")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a mapping, not a {type(content).__name__}")
    return content


if __name__ == "__main__":
    sys.exit(main())
