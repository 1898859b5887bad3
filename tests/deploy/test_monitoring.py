"""A real service, a real Prometheus that scrapes it by our configuration, and every expression of
every panel and rule asked there: none may be empty or wrong.

Only addresses and times of the configuration are changed: a test has seconds, not days.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
import yaml
from PIL import Image
from websockets.sync.client import connect

from deploy.grafana import render
from deploy.grafana.prometheus_api import Prometheus, QueryFailed, Series
from deploy.grafana.variables import everything, substitute
from service.api_keys import make_key
from tests.deploy.promql import always, selectors, shorten
from tests.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.long(60)

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
WINDOW = 10  # seconds that rates look back here, at a scrape each second
SCRAPES = 8  # before anything is asked
KEY, LINE = make_key("anna")

# The fake model on a device that tells of its memory as torch's does.
SERVE_WITH_GPU = """
import sys
from service import __main__ as command
from service.backends import fake

GIB = 2**30
KINDS = {"allocated": 2 * GIB, "reserved": 3 * GIB, "used": 5 * GIB, "total": 80 * GIB}
fake.FakeBackend.memory_bytes = lambda self: KINDS
sys.exit(command.main(["serve", "--backend", "fake", "--host", "127.0.0.1", "--port", "0"]))
"""


# -- what is asked ----------------------------------------------------------------------------


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        dashboard = json.loads(path.read_text(encoding="utf-8"))
        for panel in dashboard["panels"]:
            yield f"{dashboard['title']} - {panel['title']}", panel


def rule_files() -> list[Path]:
    return sorted((DEPLOY / "prometheus" / "rules").glob("*.yml"))


def rules(kind: str) -> list[dict[str, Any]]:
    """As in the files, for short windows."""
    documents = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in rule_files()]
    every = [r for document in documents for group in document["groups"] for r in group["rules"]]
    return [{**rule, "expr": briefly(rule["expr"])} for rule in every if kind in rule]


def briefly(expr: str) -> str:
    return shorten(expr, window=f"{WINDOW}s", offset="3s")


# -- who answers ------------------------------------------------------------------------------


@contextmanager
def process(command: Sequence[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    running = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield running
    finally:
        running.terminate()
        try:
            running.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()


@contextmanager
def service(*arguments: str, **environment: str) -> Iterator[str]:
    """Its address, when it is ready."""
    with process([sys.executable, *arguments], SEGVLM_ACCESS_LOG="false", **environment) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        found = re.search(r"ready on http://localhost:(\d+)", line)
        assert found, f"the service did not start: {line!r}"
        yield f"127.0.0.1:{found[1]}"


def configure(directory: Path, addresses: list[str], own_address: str) -> Path:
    """Our configuration, with a key, other addresses and shorter times."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))
    config["global"] = {
        "scrape_interval": "1s",
        "scrape_timeout": "1s",
        "evaluation_interval": "1s",
    }
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    assert jobs["segvlm"].pop("dns_sd_configs")
    jobs["segvlm"]["static_configs"] = [{"targets": addresses}]
    jobs["segvlm"]["authorization"] = {"credentials": KEY}
    jobs["prometheus"]["static_configs"] = [{"targets": [own_address]}]
    (directory / "rules").mkdir()
    for path in rule_files():
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        for group in document["groups"]:
            group["interval"] = "1s"
            for rule in group["rules"]:
                rule["expr"] = briefly(rule["expr"])
        (directory / "rules" / path.name).write_text(yaml.safe_dump(document), encoding="utf-8")
    made = directory / "prometheus.yml"
    made.write_text(yaml.safe_dump(config), encoding="utf-8")
    return made


@contextmanager
def prometheus(directory: Path, addresses: list[str]) -> Iterator[Prometheus]:
    """A server that has scraped all `addresses` some times."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        own_address = f"127.0.0.1:{free.getsockname()[1]}"
    config = configure(directory, addresses, own_address)
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address={own_address}",
    ]
    with process(command) as running:
        server = Prometheus(f"http://{own_address}")

        def scraped() -> bool:
            assert running.poll() is None, "prometheus ended"
            try:
                counts = server.at('count_over_time(up{job="segvlm"}[5m])')
            except (OSError, QueryFailed):  # it does not listen yet, or has only begun to
                return False
            return len(counts) == len(addresses) and all(c.newest >= SCRAPES for c in counts)

        wait_until(scraped, f"{SCRAPES} scrapes of {addresses}")
        yield server


# -- who asks the service ---------------------------------------------------------------------


def photo(seed: int) -> bytes:
    """Every seed another file."""
    buffer = BytesIO()
    Image.linear_gradient("L").resize((96, 64 + seed % 64)).rotate(seed).save(buffer, "PNG")
    return buffer.getvalue()


def visit(address: str, stop: threading.Event, first: int) -> None:
    """Good requests and bad ones, in turn, until told to stop."""
    url = f"http://{address}/segment"
    with httpx.Client(timeout=PATIENCE, headers={"X-API-Key": KEY}) as client:
        for number in range(first, first + 1_000_000):
            good = {"files": {"image": photo(number)}, "data": {"expression": ["red", "dog"]}}
            known = {"files": {"image": photo(0)}, "data": {"expression": "dog"}}
            client.post(url, **good)
            client.post(url, **known, params={"format": "overlay"})
            client.post(url, **known, headers={"X-Request-Timeout": "0.0001"})
            client.post(url, files={"image": b"no image"}, data={"expression": "dog"})
            client.get(f"http://{address}/nothing/here")
            client.get(f"http://{address}/metrics", headers={"X-API-Key": "a stranger's"})
            asked = {"expression": "dog"}
            client.post(f"http://{address}/hf/image-segmentation", params=asked, content=photo(0))
            concept: dict[str, Any] = {"image": {"type": "base64", "value": ""}, "prompts": []}
            client.post(f"http://{address}/sam3/concept_segment", json=concept)
            film(address, number)
            if stop.wait(0.2):
                return


def film(address: str, number: int) -> None:
    """A stream: frames at once, of which the newest counts, a broken one, and an end."""
    header = {"X-API-Key": KEY}
    url = f"ws://{address}/stream"
    with connect(url, additional_headers=header, compression=None, close_timeout=1) as stream:
        stream.send(json.dumps({"expressions": ["dog"]}))
        assert json.loads(stream.recv(PATIENCE))["type"] == "ready"
        for shot in range(8):
            stream.send(photo(number + shot))
        stream.send(b"no image")
        while json.loads(stream.recv(PATIENCE)).get("reason") not in ("bad_image", "queue_full"):
            pass


@contextmanager
def load(visitors: Sequence[str]) -> Iterator[None]:
    """One visitor for each of the addresses, which may be there several times."""
    stop = threading.Event()
    threads = [
        threading.Thread(target=visit, args=(address, stop, 1000 * place))
        for place, address in enumerate(visitors)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)


@pytest.fixture(scope="module")
def watching(
    tmp_path_factory: pytest.TempPathFactory, default_bundle: Path
) -> Iterator[Prometheus]:
    """Prometheus over two instances under load: the bundled model, which lets in everybody, and one
    with a GPU's memory and a key."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is missing; Debian's package prometheus has it")
    with ExitStack() as stack:
        arguments = ("-m", "service", "serve", "--host", "127.0.0.1", "--port", "0")
        # Three visitors are more than fit, so some are refused.
        real = stack.enter_context(
            service(*arguments, SEGVLM_BUNDLE=str(default_bundle), SEGVLM_MAX_QUEUE="1")
        )
        directory = tmp_path_factory.mktemp("prometheus")
        (directory / "keys").write_text(LINE, encoding="utf-8")
        keys = str(directory / "keys")
        fake = stack.enter_context(service("-c", SERVE_WITH_GPU, SEGVLM_API_KEYS_FILE=keys))
        stack.enter_context(load([real, real, real, fake]))
        yield stack.enter_context(prometheus(directory, [real, fake]))


# -- the answers ------------------------------------------------------------------------------


def ask(server: Prometheus, expr: str, instant: bool = True) -> list[Series]:
    """What `expr` yields, if it is something: a misspelt metric never is."""
    found: list[Series] = []

    def answered() -> bool:
        now = time.time()
        found[:] = server.at(expr) if instant else server.over(expr, now - WINDOW, now, 1)
        return any(math.isfinite(value) for series in found for _, value in series.points)

    wait_until(answered, f"data for {expr}")
    return found


def asked_as_grafana_does(expr: str) -> str:
    return substitute(expr, everything(rate_interval=WINDOW, range_seconds=WINDOW))


def label_values(server: Prometheus, query: str) -> list[str]:
    """A variable's values, by the call that Grafana makes of `label_values(selector, label)`."""
    found = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
    assert found, query
    values = server.get(f"label/{found[2]}/values", {"match[]": asked_as_grafana_does(found[1])})
    assert isinstance(values, list)
    return values


@pytest.mark.parametrize(
    ("panel", "target"),
    [
        pytest.param(panel, target, id=f"{name} - {target['legendFormat']}")
        for name, panel in panels()
        for target in panel["targets"]
    ],
)
def test_panel_has_data(
    watching: Prometheus, panel: dict[str, Any], target: dict[str, Any]
) -> None:
    found = ask(watching, asked_as_grafana_does(target["expr"]), target["instant"])
    values = [value for series in found for _, value in series.points if math.isfinite(value)]
    if panel["fieldConfig"]["defaults"]["unit"] == "percentunit" and "budget" not in target["expr"]:
        assert 0 <= min(values) <= max(values) < 1.2  # more than 1 by extrapolation only
    for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
        assert all(series.labels.get(label) for series in found), f"the legend lacks {label}"


@pytest.mark.parametrize("rule", rules("record"), ids=lambda rule: rule["record"])
def test_recording_rule_has_data(watching: Prometheus, rule: dict[str, Any]) -> None:
    assert ask(watching, rule["expr"])
    assert ask(watching, rule["record"])


@pytest.mark.parametrize(
    "rule", rules("alert"), ids=lambda rule: rule["alert"] + rule["labels"].get("window", "")
)
def test_alert_is_silent_for_no_other_reason_than_health(
    watching: Prometheus, rule: dict[str, Any]
) -> None:
    """With `bool` it answers 0 or 1; it is empty if a metric is misspelt or matches none."""
    assert ask(watching, always(rule["expr"]))
    for metric, matchers in selectors(rule["expr"]):
        assert ask(watching, f"count({metric}{matchers})")


@pytest.mark.parametrize(
    ("number", "values"), [(0, 2), (1, 2), (2, 6)], ids=["model", "instance", "route"]
)
def test_variable_has_values(watching: Prometheus, number: int, values: int) -> None:
    path = DEPLOY / "grafana" / "dashboards" / "segvlm-latency.json"
    dashboard = json.loads(path.read_text(encoding="utf-8"))
    variable = dashboard["templating"]["list"][number]
    assert len(label_values(watching, variable["definition"])) == values
    assert watching.at(dashboard["annotations"]["list"][0]["expr"]) is not None


def test_prometheus_is_content_with_targets_and_rules(watching: Prometheus) -> None:
    targets = watching.get("targets")["activeTargets"]
    assert {(one["labels"]["job"], one["health"]) for one in targets} == {
        ("segvlm", "up"),
        ("prometheus", "up"),
    }
    groups = watching.get("rules")["groups"]
    known = [rule for group in groups for rule in group["rules"]]
    assert len(known) == len(rules("record")) + len(rules("alert"))
    assert {rule["name"]: rule.get("lastError") for rule in known if rule["health"] != "ok"} == {}


def test_outcomes_are_told_apart(watching: Prometheus) -> None:
    """The load of this test gives every kind of answer that the dashboards colour or count."""
    by_title = {panel["title"]: panel for _, panel in panels()}

    def names(title: str, label: str) -> set[str]:
        targets = by_title[title]["targets"]
        exprs = [asked_as_grafana_does(target["expr"]) for target in targets]
        return {s.labels.get(label, "") for expr in exprs for s in ask(watching, expr)}

    def all_told() -> bool:
        return (
            names("Answers by code", "code") >= {"200", "400", "503", "504"}
            and names("Without a result, by reason", "reason")
            >= {"bad_image", "queue_full", "deadline", "not_found"}
            and names("By route", "route") >= {"/segment", "/metrics", "unmatched"}
            and names("Errors by route", "route") >= {"/segment", "/hf/image-segmentation"}
            and names("Frames without masks, by reason", "reason") >= {"bad_image"}
            and names("By API key", "key") == {"anonymous", "anna"}
            and names("GPU memory", "kind") == {"allocated", "reserved", "used", "total"}
        )

    wait_until(all_told, "answers of every kind")


def test_misspelt_metric_is_noticed(watching: Prometheus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "PATIENCE", 0.0)
    with pytest.raises(AssertionError, match="segvlm_queue_deep"):
        ask(watching, "segvlm_queue_deep")
    with pytest.raises(QueryFailed, match="parse error"):
        ask(watching, "sum(segvlm_queue_depth")


def test_pictures_are_drawn_of_the_answers(watching: Prometheus, tmp_path: Path) -> None:
    render.main(["--prometheus", watching.url, "--out", str(tmp_path), "--minutes", "1"])
    for name in ("latency", "capacity", "requests", "streams"):
        with Image.open(tmp_path / f"dashboard-{name}.png") as picture:
            assert picture.size[0] == 1920
            assert len(picture.convert("RGB").getcolors(2**24) or ()) > 100
