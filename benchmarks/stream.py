"""A video through /stream: frames a second, frames dropped, and how old the masks are.

    python -m benchmarks.stream [--bundle DIR] [--backend onnx] [--frames 300] [--rates 10 30 60]
        [--video FOLDER] [--expressions 1] [--json FILE]

The video is drawn (a view that moves over a picture, with an object that moves across it) or the
JPEGs of a folder in the order of their names; no two frames are alike. It runs through a service in
a process of its own, from a client on the same machine:

1. the bare backend: batches of one in a loop, in its own process, before and after the rest;
2. flat out with `newest` false: every frame is answered, a few are always unanswered;
3. on schedule with `newest` true, as a camera sends: what cannot be answered in time is dropped.

Lag is from when a frame was due (flat out: was sent) until its masks were received.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from websockets.asyncio.client import ClientConnection, connect

from benchmarks import load, machine
from benchmarks.served import ROOT, our_service, processor_seconds, resident_mib

_UNANSWERED = 4  # frames that the client leaves unanswered, flat out
_WARM_UP = 20  # frames
_EXPRESSIONS = ("the person", "the car on the left", "the red cup", "a dog", "the window")
_PATIENCE = 120.0  # seconds for any answer


# -- the video --------------------------------------------------------------------------------


def drawn_video(frames: int, width: int, height: int, quality: int = 85) -> list[bytes]:
    """JPEGs: a window that wanders over a larger picture, and a disc that crosses it."""
    (scene_jpeg,) = load.drawn_jpegs(1, 2 * width, 2 * height)
    scene = Image.open(BytesIO(scene_jpeg)).convert("RGB")
    made = []
    for number in range(frames):
        angle = 2 * np.pi * number / max(frames, 1)
        left = round(width / 2 * (1 + np.cos(angle)))
        top = round(height / 2 * (1 + np.sin(angle)))
        view = scene.crop((left, top, left + width, top + height))
        x, y, radius = width * number / frames, height * (0.5 + 0.3 * np.sin(3 * angle)), height / 8
        ImageDraw.Draw(view).ellipse(
            (x - radius, y - radius, x + radius, y + radius), fill=(220, 30, 30)
        )
        buffer = BytesIO()
        view.save(buffer, "JPEG", quality=quality)
        made.append(load.unique_jpeg(buffer.getvalue(), number))
    return made


def video_from(options: argparse.Namespace) -> list[bytes]:
    """Raises ValueError for a folder without JPEGs."""
    if options.video is None:
        return drawn_video(options.frames, options.width, options.height)
    files = sorted(options.video.glob("*.jp*g"))
    if not files:
        raise ValueError(f"there is no *.jpg in {options.video}; name a folder of frames")
    jpegs = [path.read_bytes() for path in files]
    return [load.unique_jpeg(jpegs[n % len(jpegs)], n) for n in range(options.frames)]


def alike_no_more(video: Sequence[bytes], run: int) -> list[bytes]:
    """The same frames for another run, so that no cache of the server answers."""
    return [load.unique_jpeg(jpeg, (run << 32) + number) for number, jpeg in enumerate(video)]


# -- the client -------------------------------------------------------------------------------


@dataclass
class Run:
    """One video through one stream. Times are of `perf_counter`, by the frame's number."""

    due: dict[int, float] = field(default_factory=dict)
    answered: dict[int, float] = field(default_factory=dict)
    outcomes: Counter[str] = field(default_factory=Counter)
    dropped: int = 0

    def note(self, message: str | bytes) -> int:
        """Read an answer; returns the number of its frame."""
        answer = json.loads(message)
        number = int(answer["frame"])
        if answer["type"] == "result":
            self.answered[number] = time.perf_counter()
            self.dropped += answer["dropped"]
        self.outcomes[answer.get("reason", answer["type"])] += 1
        return number

    def summary(self) -> dict[str, Any]:
        """Rates over the time from the first frame's sending to the last answer; lag in ms."""
        seconds = max(self.answered.values()) - min(self.due.values())
        lags = [1000 * (at - self.due[number]) for number, at in self.answered.items()]
        quantiles = np.percentile(lags, (50, 90, 99))
        return {
            "frames": len(self.due),
            "answered": len(self.answered),
            "dropped": self.dropped,
            "outcomes": dict(self.outcomes),
            "seconds": seconds,
            "answered_per_second": len(self.answered) / seconds,
            "lag_milliseconds": dict(
                zip(("p50", "p90", "p99"), map(float, quantiles), strict=True)
            ),
        }


async def configured(socket: ClientConnection, expressions: int, newest: bool) -> None:
    """Say what to find. Raises RuntimeError if the service does not take it."""
    asked = [_EXPRESSIONS[n % len(_EXPRESSIONS)] for n in range(expressions)]
    await socket.send(json.dumps({"expressions": asked, "newest": newest}))
    answer = json.loads(await socket.recv())
    if answer["type"] != "ready":
        raise RuntimeError(f"the service answers {answer}")


async def flat_out(address: str, video: Sequence[bytes], expressions: int) -> Run:
    """Every frame answered, as fast as that goes."""
    run, places = Run(), asyncio.Semaphore(_UNANSWERED)
    async with connect(address, compression=None) as socket:
        await configured(socket, expressions, newest=False)

        async def send() -> None:
            for number, jpeg in enumerate(video):
                await places.acquire()
                run.due[number] = time.perf_counter()
                await socket.send(jpeg)

        sending = asyncio.ensure_future(send())
        for _ in video:
            async with asyncio.timeout(_PATIENCE):
                run.note(await socket.recv())
            places.release()
        await sending
    return run


async def on_schedule(address: str, video: Sequence[bytes], expressions: int, rate: float) -> Run:
    """`rate` frames a second, whatever is answered; the last frame always is."""
    run = Run()
    async with connect(address, compression=None) as socket:
        await configured(socket, expressions, newest=True)

        async def send() -> None:
            start = time.perf_counter()
            for number, jpeg in enumerate(video):
                run.due[number] = start + number / rate
                await asyncio.sleep(run.due[number] - time.perf_counter())
                await socket.send(jpeg)

        sending = asyncio.ensure_future(send())
        number = -1
        while number < len(video) - 1:
            async with asyncio.timeout(_PATIENCE):
                number = run.note(await socket.recv())
        await sending
    return run


# -- the command ------------------------------------------------------------------------------


def bare_backend(options: argparse.Namespace) -> float:
    """Batches of one a second of the model alone, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.inference", "--backend", options.backend]
    command += ["--batch", "1", "--seconds", str(options.bare_seconds), "--json", "-", "--quiet"]
    if options.bundle:
        command += ["--bundle", str(options.bundle)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout)["rows"][0]["pairs_per_second"])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed and written."""
    video = video_from(options)
    settings = {"backend": options.backend}
    if options.bundle:
        settings["bundle"] = str(options.bundle)
    bare = [] if options.no_bare else [bare_backend(options)]
    with our_service(**settings) as (url, pid):
        address = url.replace("http://", "ws://").replace("/segment", "/stream")
        rows = list(_rows(address, pid, video, options))
    if not options.no_bare:
        bare.append(bare_backend(options))
    return {
        "machine": machine.describe(),
        "backend": options.backend,
        "bundle": options.bundle.name if options.bundle else "segvlm-lite",
        "video": str(options.video.name) if options.video else "drawn",
        "size": list(Image.open(BytesIO(video[0])).size),
        "kilobytes": sum(map(len, video)) / len(video) / 1000,
        "expressions": options.expressions,
        "bare_pairs_per_second": bare,
        "rows": rows,
    }


def _rows(
    address: str, pid: int, video: Sequence[bytes], options: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    asyncio.run(flat_out(address, alike_no_more(video[:_WARM_UP], 0), options.expressions))
    for place, rate in enumerate((None, *options.rates), 1):
        frames = alike_no_more(video, place)
        if rate is None:
            running = flat_out(address, frames, options.expressions)
        else:
            running = on_schedule(address, frames, options.expressions, rate)
        server, client = processor_seconds(pid), time.process_time()
        row = asyncio.run(running).summary()
        row["server_cores"] = (processor_seconds(pid) - server) / row["seconds"]
        row["client_cores"] = (time.process_time() - client) / row["seconds"]
        yield {"rate": rate, "newest": rate is not None, "server_mib": resident_mib(pid), **row}


def print_table(result: dict[str, Any]) -> None:
    """Markdown."""
    width, height = result["size"]
    print(f"{result['machine']}; {result['bundle']}, {result['backend']}")
    print(
        f"{result['video']} video, {width} x {height}, {result['kilobytes']:.0f} kB a frame, "
        f"expressions: {result['expressions']}\n"
    )
    bare = result["bare_pairs_per_second"]
    own = sum(bare) / len(bare) if bare else None
    if bare:
        shown = " and ".join(f"{value:.1f}" for value in bare)
        print(f"The model alone, before and after: {shown} frames/s\n")
    print(
        "| frames come | newest | answered/s | of the model's own rate | answered | dropped | "
        "lag p50 ms | p99 ms | server cores |"
    )
    print("|---|---|--:|--:|--:|--:|--:|--:|--:|")
    for row in result["rows"]:
        share = f"{row['answered_per_second'] / own:.0%}" if own else "-"
        come = "flat out" if row["rate"] is None else f"{row['rate']:g}/s"
        lag = row["lag_milliseconds"]
        print(
            f"| {come} | {str(row['newest']).lower()} | {row['answered_per_second']:.1f} | {share} "
            f"| {row['answered']} | {row['dropped']} | {lag['p50']:.0f} | {lag['p99']:.0f} | "
            f"{row['server_cores']:.2f} |"
        )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--backend", default="onnx")
    parser.add_argument("--frames", type=int, default=300)
    parser.add_argument("--rates", type=float, nargs="*", default=[10.0, 30.0, 60.0])
    parser.add_argument("--expressions", type=int, default=1)
    parser.add_argument("--video", type=Path, help="a folder of JPEGs instead of a drawn one")
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--bare-seconds", type=float, default=8.0, help="of each bare run")
    parser.add_argument("--no-bare", action="store_true", help="without the model alone")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    result = measure(options)
    print_table(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
