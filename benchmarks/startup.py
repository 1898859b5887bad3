"""How long the service takes to be ready, and the memory that it then takes, idle and busy.

    python -m benchmarks.startup [--bundle DIR] [--backend onnx] [--rounds 5] [--workers 8]
        [--seconds 20] [--json FILE]

Starts the service some times: from the process's start until `/readyz` says 200, to a tenth of a
second. The first start may read files from the disk that the later ones find in memory. The memory
is that of the last process: at rest, ten times a second while --workers clients each ask one
request after another about 640 x 480 photos, no two alike, and after that.
"""

from __future__ import annotations

import argparse
import json
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urljoin
from urllib.request import urlopen

from benchmarks import load, machine
from benchmarks.served import our_service, resident_mib

_SETTLING = 2.0  # seconds until what the start leaves behind is given back


@contextmanager
def started(**settings: object) -> Iterator[tuple[str, int, float]]:
    """A service that is ready: its address, its process id, and the seconds that it took."""
    start = time.perf_counter()
    with our_service(**settings) as (url, pid):
        with urlopen(urljoin(url, "/readyz"), timeout=10):  # raises unless 200
            took = time.perf_counter() - start
        yield url, pid, took


@contextmanager
def memory_of(pid: int) -> Iterator[list[float]]:
    """MiB of the process, ten times a second until the block ends."""
    samples: list[float] = []
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(0.1):
            samples.append(resident_mib(pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield samples
    finally:
        stop.set()
        thread.join()


def memory(url: str, pid: int, options: argparse.Namespace) -> dict[str, Any]:
    """MiB at rest, under load (median and most) and after it; and what the load was."""
    time.sleep(_SETTLING)
    rest = resident_mib(pid)
    client = load.Client(url, load.bodies_from(options))
    with memory_of(pid) as samples:
        answered = load.run_load(
            lambda client: load.closed_loop(client, options.workers, options.seconds), client
        )
    time.sleep(_SETTLING)
    return {
        "at_rest": rest,
        "under_load": statistics.median(samples),
        "most": max(samples),
        "after": resident_mib(pid),
        "load": answered,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of each start, and the memory of the last process."""
    settings: dict[str, object] = {"backend": options.backend}
    if options.bundle:
        settings["bundle"] = options.bundle.resolve()
    seconds, mib = [], {}
    for left in reversed(range(options.rounds)):
        with started(**settings) as (url, pid, took):
            seconds.append(took)
            if left == 0:
                mib = memory(url, pid, options)
    return {"machine": machine.describe(), "start_seconds": seconds, "mib": mib}


def show(result: dict[str, Any]) -> None:
    seconds, mib = result["start_seconds"], result["mib"]
    rate = mib["load"]["answered_per_second"]
    rows = [
        ("start until ready, first", f"{seconds[0]:.2f} s"),
        (f"start until ready, median of {len(seconds)}", f"{statistics.median(seconds):.2f} s"),
        ("memory at rest", f"{mib['at_rest']:.0f} MiB"),
        (f"memory at {rate:.1f} requests/s, median", f"{mib['under_load']:.0f} MiB"),
        ("memory at its most", f"{mib['most']:.0f} MiB"),
        ("memory after the load", f"{mib['after']:.0f} MiB"),
    ]
    print(result["machine"])
    for name, value in rows:
        print(f"{name:40} {value:>10}")
    print(f"outcomes: {mib['load']['outcomes']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--backend", default="onnx")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--json", type=Path)
    load.add_body_options(parser)
    options = parser.parse_args()
    result = measure(options)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
