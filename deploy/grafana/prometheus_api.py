"""Asks a running Prometheus over its HTTP API. Standard library only."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

_TIMEOUT = 30.0


class QueryFailed(Exception):
    """Prometheus refused or could not answer; the message says why."""


@dataclass(frozen=True, slots=True)
class Series:
    """Values over time, or one of now: (unix seconds, value), oldest first."""

    labels: dict[str, str]
    points: list[tuple[float, float]]

    @property
    def newest(self) -> float:
        return self.points[-1][1]


class Prometheus:
    """One server, by its address."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def at(self, expr: str, time: float | None = None) -> list[Series]:
        """The value of each series now, or at `time`."""
        asked = {"query": expr} if time is None else {"query": expr, "time": f"{time:.3f}"}
        data = self.get("query", asked)
        if data["resultType"] == "scalar":
            return [_series({"metric": {}, "values": [data["result"]]})]
        return [_series({**one, "values": [one["value"]]}) for one in data["result"]]

    def over(self, expr: str, start: float, end: float, step: float) -> list[Series]:
        """The values of each series from `start` to `end`, `step` seconds apart."""
        asked = {
            "query": expr,
            "start": f"{start:.3f}",
            "end": f"{end:.3f}",
            "step": f"{step:.3f}",
        }
        return [_series(one) for one in self.get("query_range", asked)["result"]]

    def get(self, path: str, asked: dict[str, str] | None = None) -> Any:
        """The `data` of `/api/v1/<path>`. Raises QueryFailed."""
        address = f"{self.url}/api/v1/{path}?{urlencode(asked or {})}"
        try:
            with urlopen(address, timeout=_TIMEOUT) as response:
                answer = json.load(response)
        except HTTPError as error:
            raise QueryFailed(error.read().decode(errors="replace")) from error
        if answer["status"] != "success":
            raise QueryFailed(answer.get("error", answer["status"]))
        return answer["data"]


def _series(one: dict[str, Any]) -> Series:
    return Series(one["metric"], [(float(time), float(value)) for time, value in one["values"]])
