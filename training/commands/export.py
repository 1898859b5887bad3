"""python -m training export: a checkpoint -> a bundle for the service."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from model.tokenizer import clip_tokenizer
from training.data.lmdb_store import PhraseStore

from . import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
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
    export.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from model.checkpoint import load
    from training.data.dataset import real_requests
    from training.export import export_bundle

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
