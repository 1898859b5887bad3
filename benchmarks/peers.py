"""The same model, decoding and mask encoding behind SegVLM's service, LitServe and BentoML.

    python -m benchmarks.peers [--rounds 3] [--seconds 15] [--json FILE]

The first run makes an environment for the two others (`.venv-peers`, see
benchmarks/peer_servers/requirements.txt). All three answer the same client on the same cores, one
after another in every round, so that a machine that drifts does so for all; medians over the rounds
are told. For each: the most that a closed loop gets, open loops at 80 % of the slowest server's and
of its own maximum, and one at 150 % of its own. Between them the bare backend runs alone.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import load, machine
from benchmarks.served import ROOT, other_server, our_service
from benchmarks.serving import bare_backend

_ENVIRONMENT = ROOT / ".venv-peers"
_REQUIREMENTS = ROOT / "benchmarks" / "peer_servers" / "requirements.txt"
_LITSERVE_PORT, _BENTOML_PORT = 8391, 8392
_OVERLOAD = 1.5


def environment() -> Path:
    """The directory of the programs of `.venv-peers`, which is made if it is not there."""
    programs, stamp = _ENVIRONMENT / "bin", _ENVIRONMENT / ".installed"
    wanted = _REQUIREMENTS.read_text(encoding="utf-8")
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        print(f"Making {_ENVIRONMENT.name} (LitServe, BentoML and the service)", file=sys.stderr)
        venv.create(_ENVIRONMENT, with_pip=True)
        pip = [str(programs / "python"), "-m", "pip", "--disable-pip-version-check", "install"]
        # The others need other versions of what our pins name; ours are kept where they can be.
        for what in (["-e", ".[serve]", "-c", "constraints.txt"], ["-r", str(_REQUIREMENTS)]):
            subprocess.run([*pip, "--quiet", *what], cwd=ROOT, check=True)
        stamp.write_text(wanted, encoding="utf-8")
    return programs


@contextmanager
def segvlm() -> Iterator[str]:
    with our_service() as (url, _):
        yield url


@contextmanager
def litserve() -> Iterator[str]:
    programs = environment()
    module = "benchmarks.peer_servers.litserve_server"
    command = [str(programs / "python"), "-m", module, str(_LITSERVE_PORT)]
    with other_server(command, _LITSERVE_PORT, "/health", {}):
        yield f"http://127.0.0.1:{_LITSERVE_PORT}/segment"


@contextmanager
def bentoml() -> Iterator[str]:
    programs = environment()
    service = "benchmarks.peer_servers.bentoml_service:Segment"
    command = [str(programs / "bentoml"), "serve", service, "--port", str(_BENTOML_PORT)]
    settings = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "BENTOML_DO_NOT_TRACK": "True",
        "BENTOML_HOST": "127.0.0.1",
    }
    with other_server(command, _BENTOML_PORT, "/readyz", settings):
        yield f"http://127.0.0.1:{_BENTOML_PORT}/segment"


SERVERS: dict[str, Callable[[], Any]] = {
    "SegVLM": segvlm,
    "LitServe": litserve,
    "BentoML": bentoml,
}


def maximum(url: str, bodies: load.Bodies, options: argparse.Namespace) -> dict[str, Any]:
    """A closed loop, after a warm-up."""
    load.run_load(lambda c: load.closed_loop(c, 8, 5.0), load.Client(url, bodies))
    return load.run_load(
        lambda c: load.closed_loop(c, options.workers, options.seconds), load.Client(url, bodies)
    )


def offered(url: str, bodies: load.Bodies, rate: float, seconds: float) -> dict[str, Any]:
    """An open loop."""
    client = load.Client(url, bodies)
    return load.run_load(lambda c: load.open_loop(c, rate, seconds), client)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All rounds: first every server's maximum, then the open loops that are shares of these."""
    bodies = load.bodies_from(options)
    names = options.servers
    bare: list[float] = []
    closed: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        bare.append(bare_backend(options))
        for name in names:
            with SERVERS[name]() as url:
                closed[name].append(maximum(url, bodies, options))
    most = {name: _median(closed[name], "answered_per_second") for name in names}
    common = 0.8 * min(most.values())
    loads = {
        "common": dict.fromkeys(names, common),
        "own": {name: 0.8 * most[name] for name in names},
        "overload": {name: _OVERLOAD * most[name] for name in names},
    }
    opened: dict[str, dict[str, list[dict[str, Any]]]] = {
        load_name: {name: [] for name in names} for load_name in loads
    }
    for _ in range(options.rounds):
        for name in names:
            with SERVERS[name]() as url:
                maximum(url, bodies, argparse.Namespace(workers=8, seconds=1.0))
                for load_name, rates in loads.items():
                    row = offered(url, bodies, rates[name], options.seconds)
                    opened[load_name][name].append(row)
    return {
        "machine": machine.describe(),
        "image": "photos" if options.photos else f"{options.width} x {options.height}",
        "bare_pairs_per_second": bare,
        "closed": closed,
        "rates": loads,
        "open": opened,
    }


def print_tables(result: dict[str, Any]) -> None:
    """Markdown, medians over the rounds."""
    bare = statistics.median(result["bare_pairs_per_second"])
    print(f"{result['machine']}; {result['image']} JPEG; bare backend {bare:.1f}/s\n")
    print("| server | closed loop /s | of the bare backend |\n|---|--:|--:|")
    for name, rows in result["closed"].items():
        rate = _median(rows, "answered_per_second")
        print(f"| {name} | {rate:.1f} | {rate / bare:.1%} |")
    told = {
        "common": "80 % of the slowest server's maximum",
        "own": "80 % of its own maximum",
        "overload": f"{_OVERLOAD:.0%} of its own maximum",
    }
    for load_name, servers in result["open"].items():
        print(f"\nOpen loop at {told[load_name]}:\n")
        print("| server | rate /s | answered /s | p50 ms | p99 ms | outcomes |")
        print("|---|--:|--:|--:|--:|---|")
        for name, rows in servers.items():
            p50, p99 = (
                statistics.median(row["milliseconds"][q] for row in rows) for q in ("p50", "p99")
            )
            outcomes: dict[str, int] = {}
            for row in rows:
                for outcome, count in row["outcomes"].items():
                    outcomes[outcome] = outcomes.get(outcome, 0) + count
            shown = ", ".join(f"{count} x {outcome}" for outcome, count in outcomes.items())
            print(
                f"| {name} | {result['rates'][load_name][name]:.1f} | "
                f"{_median(rows, 'answered_per_second'):.1f} | {p50:.0f} | {p99:.0f} | {shown} |"
            )


def _median(rows: list[dict[str, Any]], name: str) -> float:
    return float(statistics.median(row[name] for row in rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--servers", nargs="+", choices=SERVERS, default=list(SERVERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=15.0, help="of each load")
    parser.add_argument("--workers", type=int, default=24, help="of the closed loop")
    parser.add_argument("--json", type=Path)
    load.add_body_options(parser)
    options = parser.parse_args()
    options.backend, options.bundle = "onnx", None  # what the peers run too
    result = measure(options)
    print_tables(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
