"""python -m training preview: a sheet of phrases drawn on their photos."""

from __future__ import annotations

import argparse
from pathlib import Path

from training.data.lmdb_store import PhraseStore

from . import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    preview = commands.add_parser("preview", help="a sheet of phrases drawn on photos")
    preview.add_argument("--data", type=Path, required=True, help="a phrase store")
    preview.add_argument("--split", default="val")
    preview.add_argument("--count", type=int, default=20)
    preview.add_argument("--seed", type=int, default=0)
    preview.add_argument("--out", type=Path, required=True, help="the PNG to write")
    preview.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from training.data.preview import render_preview

    store = PhraseStore(options.data)
    drawn = render_preview(store, options.out, options.split, options.count, options.seed)
    print(f"{drawn} phrases drawn in {options.out}")
