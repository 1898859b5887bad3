"""Panels on a grid, and the variables, links and marks that all dashboards share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.grafana.panels import DATASOURCE, Json
from deploy.grafana.queries import MODEL_ROUTES

SCHEMA_VERSION = 39  # Grafana 11.0; later ones migrate it when they load it
COLUMNS = 24
ROWS = 21  # of 38 pixels: what a browser shows of 1080 lines below its own bars and Grafana's


@dataclass(frozen=True, slots=True)
class Place:
    """A panel and its rectangle on the grid, in columns and rows from the top left."""

    x: int
    y: int
    width: int
    height: int
    panel: Json


def ninths(rows: Sequence[Sequence[Json]]) -> list[Place]:
    """Rows of up to three panels, each a third of the screen wide and high."""
    return [
        Place(8 * column, 7 * row, 8, 7, panel)
        for row, panels in enumerate(rows)
        for column, panel in enumerate(panels)
    ]


def dashboard(name: str, description: str, places: Sequence[Place], by_route: bool = False) -> Json:
    """A dashboard called `name`, with the variables that all of them share, and `$route`."""
    variables = [
        _variable("model", "Model", "label_values(segvlm_model_info, name)"),
        _variable(
            "instance", "Instance", 'label_values(segvlm_model_info{name=~"$model"}, instance)'
        ),
    ]
    if by_route:
        asked = f'label_values(segvlm_request_seconds_count{{route=~"{MODEL_ROUTES}"}}, route)'
        variables.append(_variable("route", "Route", asked))
    panels = [
        {"id": number, "gridPos": {"x": p.x, "y": p.y, "w": p.width, "h": p.height}, **p.panel}
        for number, p in enumerate(places, start=1)
    ]
    return {
        "uid": f"segvlm-{name.lower()}",
        "title": f"SegVLM {name}",
        "description": description,
        "tags": ["segvlm"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": False,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timezone": "browser",
        "links": [_links()],
        "annotations": {"list": [_alerts()]},
        "templating": {"list": variables},
        "panels": panels,
    }


def _variable(name: str, label: str, query: str) -> Json:
    """Any number of a label's values. "All" is the list of them: instances follow the model."""
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"qryType": 1, "query": query, "refId": f"variable-{name}"},
        "refresh": 2,  # whenever the time range moves, so new replicas turn up
        "sort": 1,
        "multi": True,
        "includeAll": True,
        "current": {"text": ["All"], "value": ["$__all"]},
        "hide": 0,
    }


def _links() -> Json:
    """To the other dashboards, same variables, same time."""
    return {
        "type": "dashboards",
        "title": "",
        "tags": ["segvlm"],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "icon": "external link",
        "tooltip": "",
        "url": "",
    }


def _alerts() -> Json:
    """Marks in every panel while an alert fires."""
    return {
        "name": "Alerts",
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"Segvlm.+",alertstate="firing"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{instance}}",
        "step": "30s",
    }
