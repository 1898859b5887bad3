"""Write the dashboards as the JSON files that Grafana is provisioned with.

    python -m deploy.grafana.dashboards

The Python files beside this one are their source; a test holds the JSON to them.
"""

from __future__ import annotations

import json
from pathlib import Path

from deploy.grafana.capacity import capacity
from deploy.grafana.latency import latency
from deploy.grafana.panels import Json
from deploy.grafana.request_outcomes import request_outcomes
from deploy.grafana.streams import streams

DIRECTORY = Path(__file__).with_name("dashboards")


def dashboards() -> dict[str, Json]:
    """Each dashboard by the name of its file."""
    every = (latency(), capacity(), request_outcomes(), streams())
    return {f"{made['uid']}.json": made for made in every}


def text(made: Json) -> str:
    """As it stands in the file."""
    return json.dumps(made, indent=2, ensure_ascii=False) + "\n"


def main() -> None:
    for name, made in dashboards().items():
        (DIRECTORY / name).write_text(text(made), encoding="utf-8")
        print(DIRECTORY / name)


if __name__ == "__main__":
    main()
