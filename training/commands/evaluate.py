"""python -m training evaluate: score a checkpoint or a bundle on a split."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from model.bundle import Bundle
from model.tokenizer import clip_tokenizer
from training.data.lmdb_store import PhraseStore

from . import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
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
    evaluate.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from model.checkpoint import load
    from training.evaluate import best_threshold, evaluate, sweep
    from training.predictors import BundlePredictor, Predictor, TorchPredictor
    from training.setup import pick_device

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
