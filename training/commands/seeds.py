"""python -m training seeds: mean and spread over evaluations of several seeds."""

from __future__ import annotations

import argparse
from pathlib import Path

from . import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    seeds = commands.add_parser(
        "seeds",
        help="mean and spread over evaluations of several seeds",
        description="Print the main numbers of several evaluations of one recipe, as a table.",
    )
    seeds.add_argument("scores", nargs="+", type=Path, metavar="JSON", help="of `evaluate --json`")
    seeds.add_argument("--markdown", type=Path, help="write the table there too")
    seeds.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from training.reporting.runs import read_scores
    from training.reporting.seeds import seed_lines

    names = [path.stem for path in options.scores]
    if len(set(names)) < len(names):  # scores.json of several runs
        names = [path.parent.name for path in options.scores]
    if len(set(names)) < len(names):
        raise ValueError("two files have the same name; rename them after their seeds")
    contents = {name: read_scores(path) for name, path in zip(names, options.scores, strict=True)}
    page = "\n".join(seed_lines(contents)) + "\n"
    print(page, end="")
    if options.markdown:
        options.markdown.parent.mkdir(parents=True, exist_ok=True)
        options.markdown.write_text(page, encoding="utf-8")
