"""Kinds of panels, as the JSON that Grafana 11 and later load (its classic model)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

DATASOURCE: Json = {"type": "prometheus", "uid": "prometheus"}


@dataclass(frozen=True, slots=True)
class Query:
    """One expression; `legend` names its series from their labels, `{{code}}`."""

    expr: str
    legend: str
    instant: bool = False
    """Only the newest value, for bars and tables."""


def time_series(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    stacked: bool = False,
    logarithmic: bool = False,
    limit: float | None = None,
    maximum: float | None = None,
    colours: Sequence[tuple[str, str]] = (),
) -> Json:
    """Lines over time. `limit` draws a line of its own, `colours` are (regular expression, colour)
    for series by name."""
    steps: list[Json] = [{"color": "transparent", "value": None}]
    if limit is not None:
        steps.append({"color": "red", "value": limit})
    scale: Json = {"type": "log", "log": 10} if logarithmic else {"type": "linear"}
    defaults: Json = {
        "unit": unit,
        "color": {"mode": "palette-classic"},
        "thresholds": {"mode": "absolute", "steps": steps},
        "custom": {
            "drawStyle": "line",
            "lineWidth": 1,
            "fillOpacity": 40 if stacked else 0,
            "showPoints": "auto",
            "pointSize": 4,
            "spanNulls": False,
            "axisPlacement": "auto",
            "scaleDistribution": scale,
            "stacking": {"mode": "normal" if stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "off" if limit is None else "dashed"},
        },
    }
    if not logarithmic:
        defaults["min"] = 0
    if maximum is not None:
        defaults["max"] = maximum
    options = {
        "legend": {"showLegend": True, "displayMode": "list", "placement": "bottom", "calcs": []},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }
    panel = _panel("timeseries", title, description, queries, defaults, options)
    panel["fieldConfig"]["overrides"] = [_colour(pattern, colour) for pattern, colour in colours]
    return panel


def stat(
    title: str, description: str, unit: str, query: Query, steps: Sequence[tuple[float, str]] = ()
) -> Json:
    """One number and its recent course. `steps`: from which value on it has which colour."""
    coloured: list[Json] = [{"color": "text" if not steps else steps[0][1], "value": None}]
    coloured += [{"color": colour, "value": value} for value, colour in steps[1:]]
    defaults: Json = {
        "unit": unit,
        "color": {"mode": "thresholds"},
        "thresholds": {"mode": "absolute", "steps": coloured},
    }
    options = {
        "colorMode": "value",
        "graphMode": "area",
        "justifyMode": "auto",
        "orientation": "auto",
        "textMode": "value",
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return _panel("stat", title, description, (query,), defaults, options)


def heatmap(title: str, description: str, unit: str, query: Query, cells: str) -> Json:
    """A histogram over time; `unit` is that of its buckets, `cells` that of what they hold."""
    options: Json = {
        "calculate": False,
        "cellGap": 1,
        "cellValues": {"unit": cells},
        "color": {
            "mode": "scheme",
            "scheme": "Oranges",
            "scale": "exponential",
            "exponent": 0.5,
            "steps": 64,
            "reverse": False,
            "fill": "dark-orange",
        },
        "filterValues": {"le": 1e-9},
        "legend": {"show": True},
        "rowsFrame": {"layout": "auto"},
        "tooltip": {"mode": "single", "yHistogram": False, "showColorScale": True},
        "yAxis": {"axisPlacement": "left", "reverse": False, "unit": unit},
        "exemplars": {"color": "rgba(255,0,255,0.7)"},
    }
    defaults: Json = {"unit": unit, "custom": {"scaleDistribution": {"type": "linear"}}}
    panel = _panel("heatmap", title, description, (query,), defaults, options)
    panel["targets"][0]["format"] = "heatmap"
    return panel


def bar_gauge(title: str, description: str, unit: str, *queries: Query) -> Json:
    """A bar for each series, as long as its newest value."""
    defaults: Json = {
        "unit": unit,
        "decimals": 0,
        "min": 0,
        "color": {"mode": "fixed", "fixedColor": "blue"},
    }
    options = {
        "displayMode": "basic",
        "orientation": "horizontal",
        "valueMode": "text",
        "namePlacement": "left",
        "showUnfilled": True,
        "sizing": "auto",
        "minVizWidth": 8,
        "minVizHeight": 16,
        "maxVizHeight": 300,
        "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
    }
    return _panel("bargauge", title, description, queries, defaults, options)


def table(title: str, description: str, unit: str, query: Query, columns: dict[str, str]) -> Json:
    """A row for each series: `columns` are labels (and `Value`) and their headings, in order."""
    options: Json = {"showHeader": True, "cellHeight": "sm"}
    panel = _panel("table", title, description, (query,), {"unit": unit}, options)
    panel["targets"][0]["format"] = "table"
    panel["transformations"] = [
        {
            "id": "organize",
            "options": {
                "excludeByName": {"Time": True},
                "indexByName": {name: place for place, name in enumerate(columns)},
                "renameByName": columns,
            },
        }
    ]
    return panel


def _panel(
    kind: str,
    title: str,
    description: str,
    queries: Sequence[Query],
    defaults: Json,
    options: Json,
) -> Json:
    return {
        "type": kind,
        "title": title,
        "description": description,
        "datasource": DATASOURCE,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": options,
        "targets": [
            {
                "refId": chr(ord("A") + place),
                "datasource": DATASOURCE,
                "editorMode": "code",
                "expr": query.expr,
                "legendFormat": query.legend,
                "format": "time_series",
                "instant": query.instant,
                "range": not query.instant,
            }
            for place, query in enumerate(queries)
        ],
    }


def _colour(pattern: str, colour: str) -> Json:
    return {
        "matcher": {"id": "byRegexp", "options": f"/{pattern}/"},
        "properties": [{"id": "color", "value": {"mode": "fixed", "fixedColor": colour}}],
    }
