"""Draw the dashboards from a running Prometheus, for the docs or where there is no Grafana.

    python -m deploy.grafana.render --prometheus http://localhost:9090 --out docs/images

Asks every query of every panel as Grafana would, for the time up to now, and writes
`dashboard-<name>.png` for each. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

from matplotlib.figure import Figure

from deploy.grafana.canvas import Box
from deploy.grafana.dashboards import DIRECTORY
from deploy.grafana.drawing import Named, draw_panel
from deploy.grafana.layout import COLUMNS
from deploy.grafana.prometheus_api import Prometheus
from deploy.grafana.variables import everything, legend, substitute

_WIDTH, _HEADER = 1920, 44  # pixels
_ROW, _GAP = 38, 8
_POINTS = 240
SCRAPE_INTERVAL = 5.0  # of deploy/prometheus/prometheus.yml


@dataclass(frozen=True, slots=True)
class Window:
    """The shown time, unix seconds."""

    start: float
    end: float

    @property
    def step(self) -> float:
        return max(SCRAPE_INTERVAL, (self.end - self.start) / _POINTS)

    def variables(self) -> dict[str, str]:
        """Grafana's, with all chosen; rates look back as far as Grafana lets them."""
        interval = max(self.step + SCRAPE_INTERVAL, 4 * SCRAPE_INTERVAL)
        return everything(interval, self.end - self.start)


def answers(prometheus: Prometheus, panel: dict[str, Any], window: Window) -> list[Named]:
    """Every series of a panel with its name."""
    found: list[Named] = []
    for target in panel["targets"]:
        expr = substitute(target["expr"], window.variables())
        if target["instant"]:
            series = prometheus.at(expr, window.end)
        else:
            series = prometheus.over(expr, window.start, window.end, window.step)
        found += [(legend(target, one.labels), one) for one in series]
    return found


def draw(prometheus: Prometheus, dashboard: dict[str, Any], window: Window) -> Figure:
    """A dashboard as it lies on its grid."""
    panels = dashboard["panels"]
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels)
    height = _HEADER + rows * _ROW + _GAP
    figure = Figure(figsize=(_WIDTH / 100, height / 100), dpi=100, facecolor="#f4f5f5")
    shown = " to ".join(
        time.strftime("%H:%M", time.gmtime(moment)) for moment in (window.start, window.end)
    )
    figure.text(0.008, 1 - 22 / height, dashboard["title"], va="center", fontsize=13, weight="bold")
    variables = [variable["label"] for variable in dashboard["templating"]["list"]]
    shown = "    ".join([*(f"{label}: All" for label in variables), f"{shown} UTC"])
    figure.text(0.992, 1 - 22 / height, shown, va="center", ha="right", fontsize=10)
    column = (_WIDTH - _GAP) / COLUMNS
    for panel in panels:
        place = panel["gridPos"]
        box = Box(
            figure,
            (window.start, window.end),
            _GAP + place["x"] * column,
            _HEADER + place["y"] * _ROW,
            (place["x"] + place["w"]) * column,
            _HEADER + (place["y"] + place["h"]) * _ROW - _GAP,
        )
        draw_panel(box, panel, answers(prometheus, panel, window))
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--prometheus", default="http://localhost:9090", help="its address")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--minutes", type=float, default=30.0, help="how far to look back")
    options = parser.parse_args(arguments)
    now = time.time()
    window = Window(now - 60 * options.minutes, now)
    for path in sorted(DIRECTORY.glob("*.json")):
        dashboard = json.loads(path.read_text(encoding="utf-8"))
        name = dashboard["uid"].removeprefix("segvlm-")
        picture = options.out / f"dashboard-{name}.png"
        draw(Prometheus(options.prometheus), dashboard, window).savefig(picture)
        print(picture)


if __name__ == "__main__":
    main()
