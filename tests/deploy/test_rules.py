"""Prometheus's configuration and rules: valid, tested, documented, and about metrics that exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.routing import APIRoute

from deploy.grafana.queries import MODEL_ROUTES
from deploy.grafana.render import SCRAPE_INTERVAL
from service.app import ROUTERS
from service.errors import ServerError, StreamsFull, problem_kinds
from service.metrics import Metrics
from tests.deploy.promql import selectors

ROOT = Path(__file__).resolve().parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
TESTS = sorted((PROMETHEUS / "tests").glob("*.yml"))
# What Prometheus itself, and what a process under Linux tells.
OTHERS = {
    "up",
    "process_cpu_seconds_total",
    "process_max_fds",
    "process_open_fds",
    "process_resident_memory_bytes",
    "process_start_time_seconds",
}


def rules(kind: str) -> list[dict[str, Any]]:
    """All rules of a kind, `alert` or `record`."""
    documents = [
        yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in sorted((PROMETHEUS / "rules").glob("*.yml"))
    ]
    groups = [group for document in documents for group in document["groups"]]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


def identity(rule: dict[str, Any]) -> str:
    return " ".join([rule["alert"], rule["labels"].get("window", "")]).strip()


def promtool(*arguments: str) -> None:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is missing; Debian's package prometheus has it")
    finished = subprocess.run(
        ["promtool", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


def test_promtool_accepts_the_configuration() -> None:
    promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))


def test_promtool_accepts_the_rules() -> None:
    paths = [str(path) for path in (PROMETHEUS / "rules").glob("*.yml")]
    promtool("check", "rules", "--lint=all", "--lint-fatal", *paths)


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_rules_do_what_their_tests_say(path: Path) -> None:
    promtool("test", "rules", str(path))


@pytest.mark.parametrize("alert", rules("alert"), ids=identity)
def test_each_alert_is_shown_firing_and_silent(alert: dict[str, Any]) -> None:
    fired = silent = False
    for path in TESTS:
        for one in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]:
            for check in one.get("alert_rule_test", ()):
                if check["alertname"] == alert["alert"]:
                    windows = [e["exp_labels"].get("window") for e in check["exp_alerts"]]
                    here = alert["labels"].get("window") in windows
                    fired, silent = fired or here, silent or not here
    assert (fired, silent) == (True, True)


@pytest.mark.parametrize("alert", rules("alert"), ids=identity)
def test_each_alert_says_what_how_much_and_what_to_do(alert: dict[str, Any]) -> None:
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"].keys() == {"summary", "description", "runbook"}
    assert "$value" in alert["annotations"]["description"]
    file, _, anchor = alert["annotations"]["runbook"].partition("#")
    assert file == "docs/operations.md"
    headings = re.findall(r"^#+ (.+)$", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
    assert anchor in [re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in headings]


def asked_for() -> set[str]:
    """Every metric in a rule or a panel."""
    exprs = [rule["expr"] for kind in ("alert", "record") for rule in rules(kind)]
    for path in (ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"):
        panels = json.loads(path.read_text(encoding="utf-8"))["panels"]
        exprs += [target["expr"] for panel in panels for target in panel["targets"]]
    return {metric for expr in exprs for metric, _ in selectors(expr)}


def test_every_metric_that_is_asked_for_exists() -> None:
    metrics = Metrics()
    metrics.watch(float, float, float, {}, lambda: {"used": 1})
    told = {name for family in metrics.registry.collect() for name in _sample_names(family)}
    recorded = {rule["record"] for rule in rules("record")}
    assert asked_for() - told - recorded - OTHERS == set()


def test_rules_and_dashboards_count_the_routes_that_ask_the_model() -> None:
    """All that anybody can POST to, but what only talks about a project."""
    routes = [r for router in ROUTERS for r in router.routes if isinstance(r, APIRoute)]
    posted = {route.path for route in routes if "POST" in (route.methods or ())}
    asking = {path for path in posted if re.fullmatch(MODEL_ROUTES, path)}
    assert posted - asking == {"/label-studio/setup", "/label-studio/webhook"}
    others = {route.path for route in routes} - posted
    assert not [path for path in others if re.fullmatch(MODEL_ROUTES, path)]
    counting = re.compile(r"segvlm_request(?:s_total|_seconds_bucket)")
    matchers = [
        matcher
        for kind in ("alert", "record")
        for rule in rules(kind)
        for metric, matcher in selectors(rule["expr"])
        if counting.fullmatch(metric)
    ]
    assert len(matchers) > 10
    assert all(f'{{route=~"{MODEL_ROUTES}"' in matcher for matcher in matchers)


def test_failures_of_frames_are_the_services_own() -> None:
    (rule,) = (one for one in rules("record") if one["record"] == "segvlm:frame_errors:increase10m")
    named = re.search(r'reason=~"([^"]+)"', rule["expr"])
    assert named
    ours = {kind.reason for kind in problem_kinds() if issubclass(kind, ServerError)}
    assert set(named[1].split("|")) == ours - {StreamsFull.reason}  # which is of a stream


def _sample_names(family: Any) -> list[str]:
    suffixes = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}
    return [family.name + suffix for suffix in suffixes.get(family.type, ("",))]


def test_every_recorded_number_is_used() -> None:
    assert {rule["record"] for rule in rules("record")} <= asked_for()


def test_scrape_interval_is_the_same_everywhere() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text(encoding="utf-8"))
    source = ROOT / "deploy" / "grafana" / "provisioning" / "datasources" / "prometheus.yml"
    (datasource,) = yaml.safe_load(source.read_text(encoding="utf-8"))["datasources"]
    interval = config["global"]["scrape_interval"]
    assert datasource["jsonData"]["timeInterval"] == interval == f"{SCRAPE_INTERVAL:g}s"
