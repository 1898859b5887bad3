"""python -m training report: the paper's tables and figures, from runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from . import Commands


def add(commands: Commands) -> None:
    """Declare the command."""
    report = commands.add_parser("report", help="the paper's tables and figures, from runs")
    report.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run's directory, or an ablation's"
    )
    report.add_argument("--out", type=Path, required=True, help="directory of the report")
    report.add_argument("--data", type=Path, help="the scored phrase store, for photos")
    report.add_argument(
        "--generalisation",
        action="append",
        default=[],
        metavar="NAME=SCORES.json",
        help="scores of `evaluate --json` on other data; may be given several times",
    )
    report.add_argument(
        "--generalisation-data",
        action="append",
        default=[],
        metavar="NAME=STORE",
        help="that data's phrase store, for example masks",
    )
    report.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> None:
    from training.report import build_report

    report = build_report(
        options.runs,
        options.out,
        data=options.data,
        generalisation=_named(options.generalisation, "--generalisation"),
        generalisation_data=_named(options.generalisation_data, "--generalisation-data"),
    )
    for line in (*report.notes, *report.left_out):
        print(f"note: {line}")
    for path in report.files:
        print(path)


def _named(pairs: Sequence[str], option: str) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not (name and equals and path):
            raise ValueError(f"{option} reads NAME=PATH, not {pair!r}")
        if name in named:
            raise ValueError(f"{option} names {name} twice; give every data set its own name")
        named[name] = Path(path)
    return named
