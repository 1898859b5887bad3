"""The dashboards' JSON: the generator's, and whole in all that a reader and Grafana need."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.grafana.dashboards import DIRECTORY, dashboards, text
from deploy.grafana.layout import COLUMNS, ROWS, SCHEMA_VERSION
from deploy.grafana.units import format_value

ROOT = Path(__file__).resolve().parents[2]
PROVISIONING = ROOT / "deploy" / "grafana" / "provisioning"
PROMETHEUS = {"type": "prometheus", "uid": "prometheus"}
COMMITTED = {path.name: path for path in sorted(DIRECTORY.glob("*.json"))}
LOADED = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in COMMITTED.items()}
PANELS = [
    pytest.param(panel, id=f"{dashboard['title']} - {panel['title']}")
    for dashboard in LOADED.values()
    for panel in dashboard["panels"]
]
# Grafana's names of the units that are used here, besides suffix:...
UNITS = {"none", "short", "percentunit", "s", "bytes", "reqps"}


def test_committed_files_are_what_the_generator_writes() -> None:
    made = {name: text(dashboard) for name, dashboard in dashboards().items()}
    committed = {name: path.read_text(encoding="utf-8") for name, path in COMMITTED.items()}
    assert committed == made, "run: python -m deploy.grafana.dashboards"
    assert made.keys() == {
        "segvlm-latency.json",
        "segvlm-capacity.json",
        "segvlm-requests.json",
        "segvlm-streams.json",
    }


@pytest.mark.parametrize("dashboard", LOADED.values(), ids=lambda made: made["uid"])
def test_dashboard_is_whole(dashboard: dict[str, Any]) -> None:
    assert dashboard["schemaVersion"] == SCHEMA_VERSION >= 39
    assert dashboard["title"] and dashboard["description"]
    assert "id" not in dashboard  # Grafana numbers dashboards itself; a file is known by its uid
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    assert len({panel["title"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
    variables = {one["name"]: one for one in dashboard["templating"]["list"]}
    assert list(variables)[:2] == ["model", "instance"]  # the second is narrowed by the first
    # Offered where it does something.
    assert ("route" in variables) is ("$route" in json.dumps(dashboard["panels"]))
    for one in variables.values():
        assert one["multi"] and one["includeAll"] and one["datasource"] == PROMETHEUS
        assert one["query"]["query"] == one["definition"]


@pytest.mark.parametrize("dashboard", LOADED.values(), ids=lambda made: made["uid"])
def test_dashboard_is_one_screen_without_overlap(dashboard: dict[str, Any]) -> None:
    assert list(misplaced(dashboard["panels"])) == []
    area = sum(panel["gridPos"]["w"] * panel["gridPos"]["h"] for panel in dashboard["panels"])
    assert area == COLUMNS * ROWS  # and without holes


def misplaced(panels: list[dict[str, Any]]) -> Iterator[str]:
    """What lies outside the grid or over something else."""
    for panel in panels:
        place = panel["gridPos"]
        inside = place["x"] >= 0 and place["x"] + place["w"] <= COLUMNS
        if not inside or place["y"] < 0 or place["y"] + place["h"] > ROWS:
            yield f"{panel['title']} is outside"
    for one, other in combinations(panels, 2):
        a, b = one["gridPos"], other["gridPos"]
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        if not beside and a["y"] < b["y"] + b["h"] and b["y"] < a["y"] + a["h"]:
            yield f"{one['title']} and {other['title']} overlap"


def test_misplaced_panels_are_noticed() -> None:
    places = ((0, 0, 12, 6), (8, 5, 16, 6), (20, 12, 8, 6), (0, 18, 4, 4))
    keys = ("x", "y", "w", "h")
    panels = [
        {"title": str(number), "gridPos": dict(zip(keys, place, strict=True))}
        for number, place in enumerate(places)
    ]
    assert list(misplaced(panels)) == ["2 is outside", "3 is outside", "0 and 1 overlap"]


@pytest.mark.parametrize("panel", PANELS)
def test_panel_is_whole(panel: dict[str, Any]) -> None:
    assert panel["description"].endswith(".")
    assert panel["datasource"] == PROMETHEUS
    unit = panel["fieldConfig"]["defaults"]["unit"]
    assert unit in UNITS or unit.startswith("suffix:")
    assert format_value(1.5, unit)  # the pictures know it as well
    assert [target["refId"] for target in panel["targets"]] == list(
        "ABCDE"[: len(panel["targets"])]
    )
    for target in panel["targets"]:
        assert target["datasource"] == PROMETHEUS
        assert target["legendFormat"]
        assert target["instant"] is not target["range"]
        assert '$instance"' in target["expr"] or target["expr"].startswith("segvlm:error_budget")
        expected = {"heatmap": "heatmap", "table": "table"}.get(panel["type"], "time_series")
        assert target["format"] == expected


@pytest.mark.parametrize("panel", PANELS)
def test_series_of_a_panel_have_names_of_their_own(panel: dict[str, Any]) -> None:
    legends = [target["legendFormat"] for target in panel["targets"]]
    assert len(set(legends)) == len(legends)
    if panel["type"] == "timeseries":
        assert panel["options"]["legend"]["showLegend"]


def test_provisioning_names_what_the_dashboards_use() -> None:
    (source,) = read("datasources/prometheus.yml")["datasources"]
    assert {"type": source["type"], "uid": source["uid"]} == PROMETHEUS
    assert source["url"] == "http://prometheus:9090"
    (provider,) = read("dashboards/segvlm.yml")["providers"]
    assert provider["type"] == "file"
    assert provider["options"]["path"].startswith("/")


def read(name: str) -> Any:
    return yaml.safe_load((PROVISIONING / name).read_text(encoding="utf-8"))
