"""Takes PromQL apart and changes it, as far as the tests of rules and dashboards need."""

from __future__ import annotations

import re
from collections.abc import Iterator

_QUOTED_OR_BRACED = re.compile(r'(\{[^}]*\}|"[^"]*")')
_COMPARISON = re.compile(r"(>=|<=|==|!=|>|<)")
_NOT_METRICS = re.compile(
    r"\b(?:by|on|ignoring|without|group_left|group_right)\s*\([^)]*\)"
    r"|\[[^\]]*\]|\boffset\s+\w+|\b(?:and|or|unless|bool)\b"
)
_SELECTOR = re.compile(r"(?<![\w:.$])([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?(?!\s*[\w:(])")


def shorten(expr: str, window: str, offset: str) -> str:
    """The same over a few seconds, for a Prometheus that has just begun."""
    expr = re.sub(r"\[\w+\]", f"[{window}]", expr)
    return re.sub(r"\boffset \w+", f"offset {offset}", expr)


def always(expr: str) -> str:
    """An alert's expression that answers 0 or 1, so that it is empty only if a metric is."""
    parts = _QUOTED_OR_BRACED.split(expr)
    parts[::2] = [_COMPARISON.sub(r"\1 bool", part) for part in parts[::2]]
    return "".join(parts)


def selectors(expr: str) -> Iterator[tuple[str, str]]:
    """Yield every metric with its matchers, which may be empty."""
    for found in _SELECTOR.finditer(_NOT_METRICS.sub(" ", expr)):
        yield found[1], found[2] or ""
