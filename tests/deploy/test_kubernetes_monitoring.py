"""What the cluster's Prometheus, Grafana and KEDA are told: our rules, dashboards and metrics."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy.kubernetes.write_prometheus_rules import RESULT, prometheus_rules
from service.metrics import Metrics
from tests.deploy.kubernetes_manifests import Manifests, render

# A ConfigMap that `kubectl apply` can handle: it keeps a copy in an annotation.
LARGEST_ANNOTATION = 262_144


@pytest.fixture(scope="module")
def example(repo_root: Path) -> Manifests:
    return render(repo_root / "deploy" / "kubernetes" / "overlays" / "example")


def test_prometheus_rules_are_those_of_compose(repo_root: Path, example: Manifests) -> None:
    assert RESULT.read_text(encoding="utf-8") == prometheus_rules(), (
        "a rule has changed: run `python deploy/kubernetes/write_prometheus_rules.py`"
    )
    files = sorted((repo_root / "deploy" / "prometheus" / "rules").glob("*.yml"))
    told = {each["metadata"]["name"]: each["spec"] for each in example.of("PrometheusRule")}
    assert told == {
        f"segvlm-{path.stem}": yaml.safe_load(path.read_text(encoding="utf-8")) for path in files
    }
    assert files


def test_every_dashboard_is_given_to_the_sidecar(repo_root: Path, example: Manifests) -> None:
    dashboards = repo_root / "deploy" / "grafana" / "dashboards"
    told: dict[str, Any] = {}
    for each in example.of("ConfigMap"):
        if each["metadata"]["labels"].get("grafana_dashboard") == "1":
            assert len(json.dumps(each)) < LARGEST_ANNOTATION, each["metadata"]["name"]
            told |= {name: json.loads(text) for name, text in each["data"].items()}
    assert told == {
        path.name: json.loads(path.read_text(encoding="utf-8"))
        for path in dashboards.glob("*.json")
    }
    assert told


def trigger(example: Manifests, name: str) -> dict[str, str]:
    """What KEDA is told about one signal."""
    (found,) = [
        each for each in example.one("ScaledObject")["spec"]["triggers"] if each["name"] == name
    ]
    metadata: dict[str, str] = found["metadata"]
    return metadata


def test_scaling_asks_for_metrics_that_exist(example: Manifests) -> None:
    series = set(re.findall(r"^(\w+)", Metrics().exposition().decode(), re.MULTILINE))
    for each in example.one("ScaledObject")["spec"]["triggers"]:
        asked = set(re.findall(r"segvlm_\w+", each["metadata"]["query"]))
        assert asked
        assert asked <= series


def test_keda_gets_only_what_it_knows(example: Manifests) -> None:
    """Its schema is not at hand here; these are the fields and types of KEDA 2.7 and newer."""
    spec = example.one("ScaledObject")["spec"]
    assert set(spec) == {
        "scaleTargetRef",
        "minReplicaCount",
        "maxReplicaCount",
        "pollingInterval",
        "advanced",
        "triggers",
    }
    assert spec["minReplicaCount"] < spec["maxReplicaCount"]
    behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
    for direction in ("scaleUp", "scaleDown"):
        assert set(behavior[direction]) == {"stabilizationWindowSeconds", "policies"}
        assert 0 <= behavior[direction]["stabilizationWindowSeconds"] <= 3600
        for policy in behavior[direction]["policies"]:
            assert policy["type"] in ("Percent", "Pods")
            assert policy["value"] > 0
            assert 0 < policy["periodSeconds"] <= 1800
    assert (
        behavior["scaleDown"]["stabilizationWindowSeconds"]
        > behavior["scaleUp"]["stabilizationWindowSeconds"]
    )
    for each in spec["triggers"]:
        assert set(each) == {"type", "name", "metricType", "metadata"}
        assert each["type"] == "prometheus"
        assert set(each["metadata"]) == {
            "serverAddress",
            "query",
            "threshold",
            "ignoreNullValues",
        }
        assert all(isinstance(value, str) for value in each["metadata"].values())
        assert float(each["metadata"]["threshold"]) > 0
    # A wait does not grow with the number of replicas; the devices' time does.
    kinds = {each["name"]: each["metricType"] for each in spec["triggers"]}
    assert kinds == {"queue-wait": "Value", "device-time": "AverageValue"}


def test_the_operator_gets_only_what_it_knows(example: Manifests) -> None:
    """The same for the Prometheus operator."""
    spec = example.one("ServiceMonitor")["spec"]
    assert set(spec) == {"jobLabel", "selector", "endpoints"}
    (endpoint,) = spec["endpoints"]
    assert set(endpoint) == {"port", "path", "interval", "scrapeTimeout"}
    interval, timeout = (
        int(endpoint[name].removesuffix("s")) for name in ("interval", "scrapeTimeout")
    )
    assert 0 < timeout <= interval
    for rule in example.of("PrometheusRule"):
        assert set(rule["spec"]) == {"groups"}


# Two replicas, scraped every 15 s for five minutes, and a third of somebody else's.
BUSY = """
  - series: 'segvlm_queue_seconds_bucket{namespace="segvlm", pod="a", le="0.25"}'
    values: '0+9x20'
  - series: 'segvlm_queue_seconds_bucket{namespace="segvlm", pod="a", le="0.5"}'
    values: '0+18x20'
  - series: 'segvlm_queue_seconds_bucket{namespace="segvlm", pod="a", le="+Inf"}'
    values: '0+20x20'
  - series: 'segvlm_queue_seconds_bucket{namespace="other", pod="x", le="+Inf"}'
    values: '0+900x20'
  - series: 'segvlm_model_ready{namespace="segvlm", pod="a"}'
    values: '1x20'
  - series: 'segvlm_device_busy_seconds_total{namespace="segvlm", pod="a"}'
    values: '0+12x20'
  - series: 'segvlm_device_busy_seconds_total{namespace="segvlm", pod="b"}'
    values: '0+9x20'
  - series: 'segvlm_device_busy_seconds_total{namespace="other", pod="x"}'
    values: '0+15x20'
"""
IDLE = """
  - series: 'segvlm_queue_seconds_bucket{namespace="segvlm", pod="a", le="0.25"}'
    values: '7x20'
  - series: 'segvlm_queue_seconds_bucket{namespace="segvlm", pod="a", le="+Inf"}'
    values: '7x20'
  - series: 'segvlm_model_ready{namespace="segvlm", pod="a"}'
    values: '1x20'
  - series: 'segvlm_device_busy_seconds_total{namespace="segvlm", pod="a"}'
    values: '40x20'
"""
GONE = """
  - series: 'segvlm_model_ready{namespace="other", pod="x"}'
    values: '1x20'
"""


@pytest.mark.parametrize(
    ("series", "name", "expected"),
    [
        (BUSY, "queue-wait", 0.5),
        (BUSY, "device-time", 1.4),
        (IDLE, "queue-wait", 0.0),
        (IDLE, "device-time", 0.0),
        (GONE, "queue-wait", None),  # nothing, so that KEDA keeps what there is
        (GONE, "device-time", None),
    ],
)
def test_scaling_signal(
    series: str, name: str, expected: float | None, example: Manifests, tmp_path: Path
) -> None:
    """The query as Prometheus computes it."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool computes the queries: install Debian's prometheus")
    samples = [] if expected is None else [{"labels": "{}", "value": expected}]
    document = {
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": yaml.safe_load(series),
                "promql_expr_test": [
                    {
                        "expr": trigger(example, name)["query"],
                        "eval_time": "5m",
                        "exp_samples": samples,
                    }
                ],
            }
        ],
    }
    file = tmp_path / "test.yml"
    file.write_text(yaml.safe_dump(document), encoding="utf-8")
    finished = subprocess.run(
        [promtool, "test", "rules", str(file)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr
