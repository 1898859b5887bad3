"""python -m training card: the numbers of a model card, from its bundle."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    card = commands.add_parser(
        "card",
        help="renew the numbers of a model card",
        description="Write the scores that a bundle carries into the measured parts of its card.",
    )
    card.add_argument("--bundle", type=Path, required=True, help="directory of `export --scores`")
    card.add_argument("--card", type=Path, required=True, help="the Markdown file to renew")
    card.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from model.bundle import Bundle
    from training.model_card import card_parts, renewed

    if not options.card.is_file():
        raise ValueError(f"there is no file {options.card}")
    text = options.card.read_text(encoding="utf-8")
    new = renewed(text, card_parts(Bundle.load(options.bundle)))
    options.card.write_text(new, encoding="utf-8")
    print(f"{options.card}: {'as it was' if new == text else 'renewed'}")
