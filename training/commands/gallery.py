"""python -m training gallery: a sheet of a bundle's answers, to be looked at."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import Commands

SAMPLE_PHOTOS = Path("service/static/samples")


def add(commands: Commands) -> None:
    """Declare the command."""
    gallery = commands.add_parser(
        "gallery",
        help="a sheet of a bundle's answers, to be looked at",
        description="Draw what a bundle answers to the model card's fixed list of expressions, or "
        "with --data to unpicked phrases of a store.",
    )
    gallery.add_argument("--bundle", type=Path, required=True, help="directory of `export`")
    gallery.add_argument("--data", type=Path, help="a phrase store, instead of the fixed list")
    gallery.add_argument("--split", help="of --data; default: val")
    gallery.add_argument("--count", type=int, help="phrases of --data; default: 24")
    gallery.add_argument(
        "--photos",
        type=Path,
        help=f"where the fixed list's photos lie; default: {SAMPLE_PHOTOS}",
    )
    gallery.add_argument("--out", type=Path, required=True, help="the PNG to write")
    gallery.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from model.bundle import Bundle
    from training.data.lmdb_store import PhraseStore
    from training.gallery import answer, fixed_questions, store_questions
    from training.reporting.answer_tiles import answer_tiles, described

    if options.data:
        if options.photos:
            raise ValueError("--photos is of the fixed list; leave it or --data out")
        count = 24 if options.count is None else options.count
        if count < 1:
            raise ValueError(f"--count must be 1 or more, not {count}")
        questions = store_questions(PhraseStore(options.data), options.split or "val", count)
    else:
        if options.split or options.count is not None:
            raise ValueError("--split and --count are of --data; leave them out, or give a store")
        questions = fixed_questions(options.photos or SAMPLE_PHOTOS)
    answers = answer(Bundle.load(options.bundle), questions)
    for each in answers:
        print(f"{described(each)}: {each.question.expression}")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    answer_tiles(answers).save(options.out, "PNG", optimize=True)
    print(options.out)
