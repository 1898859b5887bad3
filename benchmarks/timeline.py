"""What the device, the image threads and the queue did, millisecond by millisecond, as a picture.

    python -m benchmarks.timeline [--requests 60] [--together 16] [--plot FILE.png] [--json FILE]

Requests run through the service's own pipeline in this process (no HTTP), so many at a time. Shown
are every batch on the device, every decoding and mask encoding, and when pairs were waiting. It is
told how long the device was idle *although* something was waiting, which batching must avoid.
"""

from __future__ import annotations

import argparse
import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import load, machine
from model.bundle import DEFAULT_BUNDLE
from service.backends import load_model
from service.backends.base import LoadOptions
from service.engine import Engine
from service.flight import BatchReport
from service.metrics import Metrics
from service.pipeline import Pipeline
from service.request_parsing import RawRequest
from service.segment_translation import SegmentTranslation
from service.settings import load_settings
from service.stages import StageTimes

Span = tuple[float, float]
_BESIDE = {"decode": "decode, letterbox", "preprocess": "decode, letterbox", "postprocess": "masks"}


class Recorder(Metrics):
    """Metrics that also keep every batch's report."""

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[BatchReport] = []

    def batch_finished(self, report: BatchReport) -> None:
        super().batch_finished(report)
        self.reports.append(report)


@dataclass(frozen=True)
class Timeline:
    """Seconds from the first request on."""

    batches: list[tuple[float, float, int]]
    waiting: list[Span]
    beside: dict[str, list[Span]]

    @property
    def span(self) -> Span:
        return self.batches[0][0], self.batches[-1][1]

    def idle_while_waiting(self) -> float:
        """Seconds between batches in which pairs were waiting."""
        idle = 0.0
        for (_, end, _), (start, _, _) in zip(self.batches, self.batches[1:], strict=False):
            idle += sum(max(0.0, min(b, start) - max(a, end)) for a, b in self.waiting)
        return idle


async def record(options: argparse.Namespace) -> Timeline:
    """Run the requests and collect what happened."""
    settings = load_settings(
        backend=options.backend, bundle=options.bundle, max_queue=10**6, image_cache_bytes=0
    )
    load_options = LoadOptions(max_batch_size=options.max_batch_size)
    model = load_model(options.backend, options.bundle, load_options)
    metrics = Recorder()
    engine = Engine(model, settings, metrics)
    pipeline = Pipeline(engine, settings)
    engine.start()
    while not engine.ready:
        if not engine.alive:
            raise RuntimeError(engine.fault)
        await asyncio.sleep(0.01)
    bodies = load.bodies_from(options)
    gate = asyncio.Semaphore(options.together)
    kept: list[StageTimes] = []

    async def ask() -> None:
        async with gate:
            times = StageTimes(engine.clock)
            kept.append(times)
            raw = RawRequest(bodies.next(), bodies.content_type, "", [])
            translation = SegmentTranslation(raw, "application/json", settings)
            await pipeline.answer(translation, times)

    zero = engine.clock()
    await asyncio.gather(*(ask() for _ in range(options.requests)))
    engine.stop(60)
    pipeline.close()
    return _timeline(zero, metrics.reports, kept)


def _timeline(zero: float, reports: Sequence[BatchReport], kept: Sequence[StageTimes]) -> Timeline:
    batches = sorted((r.started_at - zero, r.finished_at - zero, r.size) for r in reports)
    queued = [(at - zero, r.started_at - zero) for r in reports for at in r.queued_at]
    beside: dict[str, list[Span]] = {}
    for times in kept:
        for stage in times.stages:
            if stage.name in _BESIDE:
                span = (stage.started_at - zero, stage.finished_at - zero)
                beside.setdefault(_BESIDE[stage.name], []).append(span)
    return Timeline(batches, _union(queued), beside)


def _union(spans: Sequence[Span]) -> list[Span]:
    """Overlapping spans joined, in order."""
    joined: list[Span] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def lanes(spans: Sequence[Span]) -> list[list[Span]]:
    """Spans laid out so that none overlaps another in its lane: one lane for each busy thread."""
    rows: list[list[Span]] = []
    for start, end in sorted(spans):
        for row in rows:
            if row[-1][1] <= start:
                row.append((start, end))
                break
        else:
            rows.append([(start, end)])
    return rows


def plot(timeline: Timeline, path: Path, title: str) -> None:
    """One row for the device, one for the queue, and as many as are needed for the threads."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows: list[tuple[str, list[Span], str]] = [("pairs are waiting", timeline.waiting, "#bbbbbb")]
    colours = {"decode, letterbox": "#0072b2", "masks": "#009e73"}
    for name, colour in colours.items():
        found = lanes(timeline.beside.get(name, []))
        rows += [(f"{name} {number}", lane, colour) for number, lane in enumerate(found, 1)]
    rows.append(("device", [(a, b) for a, b, _ in timeline.batches], "#d55e00"))
    figure, axes = pyplot.subplots(figsize=(11, 0.5 * len(rows) + 1.2), layout="tight")
    for place, (_, spans, colour) in enumerate(rows):
        bars = [(1000 * a, 1000 * (b - a)) for a, b in spans]
        axes.broken_barh(bars, (place - 0.4, 0.8), color=colour, edgecolor="white", linewidth=0.4)
    for start, end, size in timeline.batches:
        middle = 500 * (start + end)
        axes.text(middle, len(rows) - 1, str(size), ha="center", va="center", color="white")
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows])
    axes.set(xlabel="milliseconds (the number in a batch is its size)", title=title)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--backend", default="onnx")
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--together", type=int, default=16)
    parser.add_argument("--max-batch-size", type=int, default=8)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--json", type=Path)
    load.add_body_options(parser)
    options = parser.parse_args()
    timeline = asyncio.run(record(options))
    start, end = timeline.span
    busy = sum(b - a for a, b, _ in timeline.batches)
    waiting, idle = sum(b - a for a, b in timeline.waiting), timeline.idle_while_waiting()
    result: dict[str, Any] = {
        "machine": machine.describe(),
        "seconds": end - start,
        "device_busy_seconds": busy,
        "waiting_seconds": waiting,
        "idle_while_waiting_seconds": idle,
        "batch_sizes": [size for *_, size in timeline.batches],
    }
    print(result["machine"])
    print(f"{len(timeline.batches)} batches in {end - start:.3f} s, sizes {result['batch_sizes']}")
    print(f"device busy {busy / (end - start):.1%}; pairs waiting for {waiting:.3f} s")
    print(
        f"device idle while pairs waited: {1000 * idle:.2f} ms, {idle / waiting:.2%} of that time"
    )
    if options.plot:
        plot(timeline, options.plot, f"{options.bundle.name}, {options.backend}")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
