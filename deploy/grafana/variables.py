"""What Grafana puts in the place of its variables, for asking Prometheus without it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from deploy.grafana.queries import MODEL_ROUTES

_VARIABLE = re.compile(r"\$(\w+)")
_LEGEND = re.compile(r"\{\{\s*(\w+)\s*\}\}")


def substitute(expr: str, values: Mapping[str, str]) -> str:
    """`expr` with the value of each `$name`. Raises KeyError for one without."""
    return _VARIABLE.sub(lambda found: values[found[1]], expr)


def everything(rate_interval: float, range_seconds: float) -> dict[str, str]:
    """Values that choose all models, instances and routes."""
    return {
        "model": ".+",
        "instance": ".+",
        "route": MODEL_ROUTES,
        "__rate_interval": f"{round(rate_interval)}s",
        "__range": f"{round(range_seconds)}s",
    }


def legend(target: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    """The name of a series in a panel."""
    return _LEGEND.sub(lambda found: labels.get(found[1], ""), target["legendFormat"])
