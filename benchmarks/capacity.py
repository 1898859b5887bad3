"""How many replicas a rate and a p99 need, from a small queueing model held against measurements.

    python -m benchmarks.inference --json inference.json
    python -m benchmarks.serving --json serving.json --plot serving.png
    python -m benchmarks.capacity inference.json serving.json                  does the model hold?
    python -m benchmarks.capacity inference.json serving.json --rate 200 --p99 0.3

A replica is one server that takes whatever waits, at most a full batch, as soon as it is free
(M/D^[1,B]/1: Poisson arrivals, a fixed time for each batch size). Three measured things make it:

- the time of each batch size, of the model alone (`benchmarks.inference`);
- what a request costs besides, on the same cores: one over the closed loop's maximum, less its
  share of a full batch (`benchmarks.serving`);
- what a request takes besides when nobody else is there, which delays it and nobody else.

Seconds throughout. It is simulated rather than solved, so a measured load of a few seconds is
compared with loads as short.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

_MOST_REPLICAS = 10_000
_PLAN = 600.0  # seconds of load in a plan
_RUNS = 20


@dataclass(frozen=True, slots=True)
class Replica:
    """`batch_seconds`: (size, seconds on the device, other work included), sizes rising from 1."""

    batch_seconds: tuple[tuple[int, float], ...]
    overhead: float

    @property
    def max_batch_size(self) -> int:
        return self.batch_seconds[-1][0]

    @property
    def capacity(self) -> float:
        """The most requests a second."""
        return max(size / seconds for size, seconds in self.batch_seconds)

    def seconds(self, size: int) -> float:
        """The time of a batch of `size`, between measured ones on a line."""
        for (low, before), (high, after) in pairwise(self.batch_seconds):
            if low <= size <= high:
                return before + (after - before) * (size - low) / (high - low)
        return self.batch_seconds[0][1]


def measured_replica(inference: dict[str, Any], serving: dict[str, Any]) -> Replica:
    """From the JSON of the two benchmarks.

    Raises ValueError if they do not belong together or the first has no batch of one.
    """
    rows = sorted((row["batch"], row["p50_ms"] / 1000) for row in inference["rows"])
    if not rows or rows[0][0] != 1:
        raise ValueError("measure from one pair up: benchmarks.inference --batch 1 2 4 8")
    if len(dict(rows)) != len(rows):
        raise ValueError("measure one precision: benchmarks.inference --precision fp32")
    if inference["machine"] != serving["machine"]:
        raise ValueError(
            f"measured on two machines: {inference['machine']}; {serving['machine']}; run both "
            "benchmarks on one"
        )
    closed = serving["closed"]["answered_per_second"]
    fastest = max(size / seconds for size, seconds in rows)
    work = max(0.0, 1 / closed - 1 / fastest)  # on the model's own cores
    alone = serving["unloaded_milliseconds"]
    overhead = (alone["client"] - alone["inference"]) / 1000
    return Replica(
        tuple((size, seconds + size * work) for size, seconds in rows), max(0.0, overhead - work)
    )


def simulate(replica: Replica, rate: float, seconds: float, rng: random.Random) -> list[float]:
    """Times to the answer of all requests that arrive within `seconds`, in order of arrival."""
    arrivals, due = [], rng.expovariate(rate)
    while due < seconds:
        arrivals.append(due)
        due += rng.expovariate(rate)
    took: list[float] = []
    free = 0.0
    while len(took) < len(arrivals):
        first = len(took)
        start = max(free, arrivals[first])
        last = first
        while (
            last < len(arrivals)
            and last - first < replica.max_batch_size
            and arrivals[last] <= start
        ):
            last += 1
        free = start + replica.seconds(last - first)
        took += [free - arrivals[i] + replica.overhead for i in range(first, last)]
    return took


def quantile(times: Sequence[float], share: float) -> float:
    """The smallest time that `share` of `times` do not exceed; inf of none."""
    if not times:
        return math.inf
    return sorted(times)[max(0, math.ceil(share * len(times)) - 1)]


def latency(replica: Replica, rate: float, seconds: float, share: float, runs: int) -> float:
    """A quantile of the time to the answer over `runs` loads."""
    times: list[float] = []
    for seed in range(runs):
        times += simulate(replica, rate, seconds, random.Random(seed))
    return quantile(times, share)


def replicas_for(replica: Replica, rate: float, p99: float) -> int:
    """The fewest replicas that answer `rate` requests a second, 99 of 100 within `p99` seconds.

    The balancer deals requests out at random, so each replica sees a Poisson stream of its share.
    Raises ValueError if not even an idle replica answers in time.
    """
    idle = replica.seconds(1) + replica.overhead
    if idle > p99:
        raise ValueError(
            f"a request alone takes {idle:.3f} s already, longer than {p99:g} s; a faster machine, "
            "device or model is needed, not more replicas"
        )
    low, high = 0, 1

    def enough(count: int) -> bool:
        share = rate / count
        return share < replica.capacity and latency(replica, share, _PLAN, 0.99, 1) <= p99

    while not enough(high):
        low, high = high, 2 * high
        if high > _MOST_REPLICAS:
            raise ValueError(f"{_MOST_REPLICAS} replicas are not enough; allow more time")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def compare(replica: Replica, serving: dict[str, Any]) -> list[dict[str, float]]:
    """The measured open loops below saturation beside the model's, in seconds."""
    rows = []
    for row in serving["open"]:
        if row["rate"] >= replica.capacity:
            continue
        told = {"rate": row["rate"], "share": row["rate"] / replica.capacity}
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            told[f"measured_{name}"] = row["milliseconds"][name] / 1000
            told[f"model_{name}"] = latency(replica, row["rate"], row["seconds"], share, _RUNS)
        rows.append(told)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("inference", type=Path, help="JSON of benchmarks.inference")
    parser.add_argument("serving", type=Path, help="JSON of benchmarks.serving")
    parser.add_argument("--rate", type=float, nargs="+", help="requests a second to plan for")
    parser.add_argument("--p99", type=float, nargs="+", default=[0.3], help="seconds allowed")
    options = parser.parse_args(arguments)
    inference = json.loads(options.inference.read_text(encoding="utf-8"))
    serving = json.loads(options.serving.read_text(encoding="utf-8"))
    try:
        replica = measured_replica(inference, serving)
        plan = [
            (rate, [replicas_for(replica, rate, p99) for p99 in options.p99])
            for rate in options.rate or []
        ]
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{serving['machine']}; {inference['model']}")
    print(f"One replica answers at most {replica.capacity:.1f} requests/s\n")
    if plan:
        allowed = " | ".join(f"p99 {1000 * p99:g} ms" for p99 in options.p99)
        print(f"| requests/s | {allowed} |")
        print("|--:|" + "--:|" * len(options.p99))
        for rate, counts in plan:
            print(f"| {rate:g} | " + " | ".join(map(str, counts)) + " |")
        return 0
    print("| requests/s | of the most | p50 ms measured | model | p99 ms measured | model |")
    print("|--:|--:|--:|--:|--:|--:|")
    for row in compare(replica, serving):
        ms = [
            f"{1000 * row[f'{source}_{name}']:.0f}"
            for name in ("p50", "p99")
            for source in ("measured", "model")
        ]
        print(f"| {row['rate']:.1f} | {row['share']:.0%} | " + " | ".join(ms) + " |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
