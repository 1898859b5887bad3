"""The pictures of the dashboards: units, names and colours as Grafana's, holes where there is none.

What they look like with data is looked at by people; `test_monitoring.py` draws all of them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from deploy.grafana.dashboards import dashboards
from deploy.grafana.prometheus_api import Prometheus, QueryFailed
from deploy.grafana.render import Window, draw
from deploy.grafana.units import format_value
from deploy.grafana.variables import everything, legend, substitute

START, END = 1_800_000_000.0, 1_800_000_600.0


@pytest.mark.parametrize(
    ("value", "unit", "shown"),
    [
        (0.0123, "percentunit", "1.23 %"),
        (0.0, "percentunit", "0 %"),
        (0.00025, "s", "250 µs"),
        (0.034, "s", "34 ms"),
        (2.0, "s", "2 s"),
        (90.0, "s", "1.5 min"),
        (200_000.0, "s", "2.31 days"),
        (3 * 2**29, "bytes", "1.5 GiB"),
        (12.345, "reqps", "12.3 req/s"),
        (1234.5, "short", "1,234"),
        (1.5, "suffix: cores", "1.5 cores"),
    ],
)
def test_values_have_their_unit(value: float, unit: str, shown: str) -> None:
    assert format_value(value, unit) == shown


def test_unknown_unit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"add it to units\.py"):
        format_value(1.0, "furlongs")


def test_variables_are_replaced_and_unknown_ones_refused() -> None:
    values = everything(rate_interval=20, range_seconds=600)
    expr = 'rate(a{instance=~"$instance"}[$__rate_interval]) + b[$__range]'
    assert substitute(expr, values) == 'rate(a{instance=~".+"}[20s]) + b[600s]'
    with pytest.raises(KeyError):
        substitute("$cluster", values)


def test_legend_is_made_of_labels() -> None:
    target = {"legendFormat": "{{kind}} of {{instance}}{{missing}}"}
    assert legend(target, {"kind": "used", "instance": "a:1"}) == "used of a:1"


class Canned(BaseHTTPRequestHandler):
    """Answers a query with what `series` says, or refuses."""

    def do_GET(self) -> None:
        asked = parse_qs(urlsplit(self.path).query)
        found = series(asked["query"][0])
        if found is None:
            self.answer(400, {"status": "error", "error": "parse error"})
            return
        times = [START + 5 * step for step in range(120)]
        result: list[dict[str, Any]] = []
        for labels, value in found:
            points = [[time, str(value)] for time in times]
            instant = urlsplit(self.path).path.endswith("/query")
            result.append(
                {"metric": labels, **({"value": points[-1]} if instant else {"values": points})}
            )
        self.answer(200, {"status": "success", "data": {"resultType": "vector", "result": result}})

    def answer(self, status: int, document: dict[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(document).encode())

    def log_message(self, *arguments: object) -> None:
        pass


def series(query: str) -> list[tuple[dict[str, str], float]] | None:
    """Two codes, one of them never a number; three buckets; nothing else."""
    if "nonsense" in query:
        return None
    if "by (code)" in query:
        return [({"code": "200"}, 3.0), ({"code": "503"}, math.nan)]
    if "segvlm_request_seconds_bucket" in query and "histogram_quantile" not in query:
        return [({"le": "0.5"}, 1.0), ({"le": "+Inf"}, 6.0), ({"le": "1.0"}, 5.0)]
    return []


@pytest.fixture
def canned() -> Iterator[Prometheus]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Canned)
    Thread(target=server.serve_forever, daemon=True).start()
    yield Prometheus(f"http://127.0.0.1:{server.server_port}/")
    server.shutdown()
    server.server_close()


def drawn(canned: Prometheus, name: str) -> Figure:
    figure = draw(canned, dashboards()[f"segvlm-{name}.json"], Window(START, END))
    figure.canvas.draw()
    return figure


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if isinstance(text, Text)]


@pytest.mark.parametrize("name", ["latency", "capacity", "requests"])
def test_every_title_is_drawn_and_holes_are_named(canned: Prometheus, name: str) -> None:
    shown = words(drawn(canned, name))
    panels = dashboards()[f"segvlm-{name}.json"]["panels"]
    assert {panel["title"] for panel in panels} <= set(shown)
    filled = {"latency": 1, "capacity": 0, "requests": 1}[name]
    assert shown.count("No data") == len(panels) - filled


def test_heat_map_shows_what_lies_between_two_bounds(canned: Prometheus) -> None:
    """Prometheus's buckets hold all that is below; 1, 5 and 6 are 1, 4 and 1."""
    (mesh,) = [
        collection
        for axes in drawn(canned, "latency").axes
        for collection in axes.collections
        if type(collection).__name__ == "QuadMesh"
    ][:1]
    cells = mesh.get_array()
    assert cells is not None
    assert cells[:, 0].tolist() == [1.0, 4.0, 1.0]


def test_refusal_is_told_with_its_reason(canned: Prometheus) -> None:
    with pytest.raises(QueryFailed, match="parse error"):
        canned.at("nonsense")
