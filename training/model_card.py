"""The measured parts of the model card, from the scores that a bundle carries.

In the card each part stands between two comments, `<!-- measured: NAME -->` and `<!-- end -->`; all
that lies between them is replaced. The card can so never quote other numbers than its bundle's.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping

import onnx

from model.bundle import GRAPH_FILES, Bundle
from training.reporting.goals import NOT_MEASURED, Evaluation, goal_lines

MOST_WEIGHTS, MOST_BYTES = 12_000_000, 40_000_000
_PART = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def card_parts(bundle: Bundle) -> dict[str, str]:
    """By name: "goals", "scores" and "layouts".

    Raises:
        ValueError: the bundle's scores are no evaluation's.
    """
    found = Evaluation.of(bundle.config.scores)
    layouts = (
        f"Layouts: {NOT_MEASURED}.\n" if found.layouts is None else found.layouts.to_markdown()
    )
    return {
        "goals": "\n".join([*goal_lines(found), *_size_lines(bundle)]) + "\n",
        "scores": found.photos.to_markdown(),
        "layouts": layouts,
    }


def renewed(card: str, parts: Mapping[str, str]) -> str:
    """The card's text with its measured parts replaced.

    Raises:
        ValueError: the card lacks one of them, has it twice, or has one that is not known.
    """
    names = [match[2] for match in _PART.finditer(card)]
    if sorted(names) != sorted(parts):
        raise ValueError(
            f"the card has the measured parts {', '.join(names) or 'none'} and needs each of "
            f"{', '.join(parts)} once, between <!-- measured: NAME --> and <!-- end -->"
        )
    return _PART.sub(lambda match: f"{match[1]}\n{parts[match[2]].strip()}\n\n{match[3]}", card)


def weights_of(bundle: Bundle) -> int:
    """Numbers in the bundle's graphs."""
    graphs = (onnx.load(str(bundle.file(name))).graph for name in GRAPH_FILES)
    return sum(math.prod(each.dims) for graph in graphs for each in graph.initializer)


def bytes_of(bundle: Bundle) -> int:
    """Of all its files."""
    return sum(path.stat().st_size for path in bundle.path.iterdir())


def _size_lines(bundle: Bundle) -> Iterator[str]:
    weights, size = weights_of(bundle), bytes_of(bundle)
    sizes = (
        ("weights, millions", weights / 1e6, MOST_WEIGHTS / 1e6),
        ("size of the bundle, MB", size / 1e6, MOST_BYTES / 1e6),
    )
    for title, value, most in sizes:
        reached = "yes" if value <= most else "no"
        yield f"| {title} | at most {most:g} | {value:.1f} | {reached} |"
