"""The service under load over HTTP: rate against latency, up to and past saturation.

    python -m benchmarks.serving [--bundle DIR] [--backend onnx] [--seconds 20]
        [--photos FOLDER] [--json FILE] [--plot FILE.png]
    python -m benchmarks.serving --flood           single requests under a flood of large ones

Starts the service and loads it from a client process on the same machine:

1. the bare backend: the model alone in a loop, in its own process, before and after the rest;
2. one client at a time: what HTTP and batching add to decoding, model and mask encoding;
3. a closed loop of many clients: the most that it answers;
4. open loops at shares of that (arrivals on schedule, so waiting counts), beyond it too.

Machines drift, so shares of the bare backend compare with the mean of both its runs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchmarks import load, machine
from benchmarks.served import ROOT, our_service, processor_seconds, resident_mib

_SHARES = (0.2, 0.4, 0.6, 0.8, 0.9, 1.0, 1.2, 1.5)
_STAGES = ("decode", "preprocess", "queue", "inference", "postprocess", "total")


# -- one after another ------------------------------------------------------------------------


def bare_backend(options: argparse.Namespace) -> float:
    """Pairs a second of the model alone, the best of its batch sizes, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.inference", "--backend", options.backend]
    command += ["--seconds", str(options.seconds / 2), "--json", "-", "--quiet"]
    if options.bundle:
        command += ["--bundle", str(options.bundle)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = json.loads(done.stdout)["rows"]
    return max(float(row["pairs_per_second"]) for row in rows)


def unloaded(url: str, bodies: load.Bodies, seconds: float) -> dict[str, float]:
    """Medians in milliseconds of requests that have the service for themselves.

    `outside` is what the client sees beyond the work on its image, model included: HTTP, parsing,
    threads and batching.
    """
    samples: dict[str, list[float]] = {name: [] for name in (*_STAGES, "client", "outside")}
    end = time.perf_counter() + seconds
    headers, parts = {"Content-Type": bodies.content_type}, urlsplit(url)
    connection = HTTPConnection(str(parts.hostname), parts.port)  # kept alive
    while time.perf_counter() < end or len(samples["client"]) < 10:
        body = bodies.next()
        start = time.perf_counter()
        connection.request("POST", parts.path, body, headers)
        answer = connection.getresponse().read()
        samples["client"].append(1000 * (time.perf_counter() - start))
        timings = json.loads(answer)["timings"]
        for name in _STAGES:
            samples[name].append(timings[name])
        work = sum(timings[name] for name in ("decode", "preprocess", "inference", "postprocess"))
        samples["outside"].append(samples["client"][-1] - work)
    return {name: sorted(values)[len(values) // 2] for name, values in samples.items()}


# -- loads ------------------------------------------------------------------------------------


def under_load(url: str, pid: int, bodies: load.Bodies, loop: Any) -> dict[str, Any]:
    """One load; beside the client's summary the server's processor time and memory."""
    before = processor_seconds(pid)
    result = load.run_load(loop, load.Client(url, bodies))
    result["server_cores"] = (processor_seconds(pid) - before) / result["seconds"]
    result["server_mib"] = resident_mib(pid)
    return result


def sweep(
    url: str, pid: int, bodies: load.Bodies, capacity: float, options: argparse.Namespace
) -> list[dict[str, Any]]:
    """Open loops at shares of `capacity` requests a second."""
    rows = []
    for share in options.shares:
        rate = share * capacity
        row = under_load(
            url,
            pid,
            bodies,
            lambda client, rate=rate: load.open_loop(client, rate, options.seconds),
        )
        rows.append({"share": share, "rate": rate, **row})
    return rows


def flood(url: str, options: argparse.Namespace) -> dict[str, Any]:
    """Single requests, a few a second, alone and while large ones come at twice what fits."""

    async def both(singles: load.Client, tens: load.Client, rate: float) -> float:
        flooding = asyncio.ensure_future(load.open_loop(tens, rate, options.seconds + 2, seed=1))
        await asyncio.sleep(2)
        took = await load.open_loop(singles, options.single_rate, options.seconds)
        await flooding
        return took

    jpegs = load.bodies_from(options).jpegs
    many = options.expressions if options.expressions > 1 else 10
    closed = load.Client(url, load.Bodies(jpegs, many))
    capacity = load.run_load(lambda c: load.closed_loop(c, 8, options.seconds), closed)
    alone = load.Client(url, load.Bodies(jpegs))
    result: dict[str, Any] = {
        "alone": load.run_load(
            lambda c: load.open_loop(c, options.single_rate, options.seconds), alone
        )
    }
    singles, tens = load.Client(url, load.Bodies(jpegs)), load.Client(url, load.Bodies(jpegs, many))
    rate = options.flood_share * capacity["answered_per_second"]
    result["flooded"] = load.run_load(lambda c: both(c, tens, rate), singles)
    result["flood"] = load.summary(tens, options.seconds + 2, 0.0)
    result["expressions"] = many
    return result


# -- the command ------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed and written."""
    bodies = load.bodies_from(options)
    settings = {"backend": options.backend}
    if options.bundle:
        settings["bundle"] = str(options.bundle)
    bare = [] if options.no_bare else [bare_backend(options)]
    with our_service(**settings) as (url, pid):
        _warm_up(url, bodies)
        alone = unloaded(url, bodies, options.seconds / 2)
        closed = under_load(
            url, pid, bodies, lambda c: load.closed_loop(c, options.workers, options.seconds)
        )
        rows = sweep(url, pid, bodies, closed["answered_per_second"], options)
    if not options.no_bare:
        bare.append(bare_backend(options))
    return {
        "machine": machine.describe(),
        "backend": options.backend,
        "bundle": options.bundle.name if options.bundle else "segvlm-lite",
        "image": "photos" if options.photos else f"{options.width} x {options.height}",
        "bare_pairs_per_second": bare,
        "unloaded_milliseconds": alone,
        "closed": closed,
        "open": rows,
    }


def _warm_up(url: str, bodies: load.Bodies) -> None:
    result = load.run_load(lambda c: load.closed_loop(c, 8, 3.0), load.Client(url, bodies))
    if not result["outcomes"].get("200"):
        raise RuntimeError(f"the service answers {result['outcomes']}; see its error above")


def print_table(result: dict[str, Any]) -> None:
    """Markdown."""
    print(f"{result['machine']}; {result['bundle']}, {result['backend']}, {result['image']} JPEG\n")
    alone = result["unloaded_milliseconds"]
    told = ", ".join(f"{name} {alone[name]:.1f}" for name in (*_STAGES[:-1], "outside", "client"))
    print(f"One client, medians in ms: {told}\n")
    closed = result["closed"]
    rate = closed["answered_per_second"]
    print(f"Closed loop: {rate:.1f} requests/s, server {closed['server_cores']:.2f} cores")
    if bare := result["bare_pairs_per_second"]:
        shown = " and ".join(f"{value:.1f}" for value in bare)
        print(f"Bare backend before and after: {shown}/s; over HTTP {rate * 2 / sum(bare):.1%}")
    print("\n| rate/s | of closed | p50 ms | p99 ms | p99.9 ms | answered/s | others | MiB |")
    print("|--:|--:|--:|--:|--:|--:|---|--:|")
    for row in result["open"]:
        ms = row["milliseconds"]
        others = ", ".join(f"{n} x {c}" for c, n in row["outcomes"].items() if c != "200") or "-"
        print(
            f"| {row['rate']:.1f} | {row['share']:.0%} | {ms['p50']:.0f} | {ms['p99']:.0f} | "
            f"{ms['p99.9']:.0f} | {row['answered_per_second']:.1f} | {others} | "
            f"{row['server_mib']:.0f} |"
        )


def print_flood(result: dict[str, Any]) -> None:
    """Markdown."""
    print("| | rate/s | p50 ms | p90 ms | p99 ms | outcomes |\n|---|--:|--:|--:|--:|---|")
    for name in ("alone", "flooded", "flood"):
        row, ms = result[name], result[name]["milliseconds"]
        told = {
            "alone": "single requests, alone",
            "flooded": "single requests, flooded",
            "flood": f"the flood: {result['expressions']} expressions each",
        }[name]
        print(
            f"| {told} | {row['asked_per_second']:.1f} | {ms['p50']:.0f} | {ms['p90']:.0f} | "
            f"{ms['p99']:.0f} | {row['outcomes']} |"
        )


def plot(result: dict[str, Any], path: Path) -> None:
    """Latency over the offered rate, and what was answered of it."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (upper, lower) = pyplot.subplots(2, 1, sharex=True, figsize=(7, 6), layout="tight")
    rates = [row["rate"] for row in result["open"]]
    for name in ("p50", "p99", "p99.9"):
        upper.plot(rates, [row["milliseconds"][name] for row in result["open"]], "o-", label=name)
    upper.set(ylabel="milliseconds", yscale="log", title="Time to the answer")
    upper.legend()
    lower.plot(rates, rates, ":", color="grey", label="offered")
    answered = [row["answered_per_second"] for row in result["open"]]
    lower.plot(rates, answered, "o-", label="answered")
    if bare := result["bare_pairs_per_second"]:
        lower.axhline(sum(bare) / len(bare), color="green", label="bare backend")
    lower.set(xlabel="requests a second, open loop", ylabel="requests a second", ylim=(0, None))
    lower.legend()
    figure.suptitle(f"{result['bundle']}, {result['backend']}\n{result['machine']}", fontsize=9)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--backend", default="onnx")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--workers", type=int, default=24, help="of the closed loop")
    parser.add_argument("--shares", type=float, nargs="+", default=_SHARES)
    parser.add_argument("--no-bare", action="store_true", help="without the model alone")
    parser.add_argument("--flood", action="store_true")
    parser.add_argument("--single-rate", type=float, default=2.0, help="with --flood")
    parser.add_argument("--flood-share", type=float, default=2.0, help="of what can be answered")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    load.add_body_options(parser)
    options = parser.parse_args(arguments)
    if options.flood:
        settings = {"bundle": str(options.bundle)} if options.bundle else {}
        with our_service(backend=options.backend, **settings) as (url, _):
            result = flood(url, options)
        print(machine.describe(), "\n")
        print_flood(result)
    else:
        result = measure(options)
        print_table(result)
        if options.plot:
            plot(result, options.plot)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
