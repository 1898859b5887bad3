"""Hours of mixed requests, and whether the service's memory stays where it is.

    python -m benchmarks.soak [--minutes 60] [--workers 6] [--json FILE] [--plot FILE.png]

Photos from thumbnails to 12 megapixels, JPEG, PNG, WebP and GIF, one expression to thirty, every
form of answer, images that the cache knows, broken files, wrong fields, callers that hang up in the
middle of the upload or of the wait, and pauses. Memory is read twice a second; what counts is the
median of each tenth of the time, because one large photo is a peak and no leak. It is flat if it
does not grow from the first tenth that began with full caches to the last.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit
from urllib.request import urlopen

from PIL import Image

from benchmarks import load, machine
from benchmarks.served import our_service, resident_mib

_SIZES = ((96, 64), (320, 240), (640, 480), (640, 480), (1280, 960), (1920, 1080), (4000, 3000))
_FORMATS = ("rle", "rle", "rle", "png", "polygons", "none", "overlay")
_LIMIT = 0.02  # growth that still counts as flat
_FULL = 0.98  # of the most that the caches ever held


class Crowd:
    """Makes requests of every kind from a seed; holds each picture as a file once."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._files = [load.drawn_jpegs(1, *size)[0] for size in _SIZES]
        for name in ("PNG", "WEBP", "GIF"):
            buffer = BytesIO()
            Image.open(BytesIO(self._files[2])).save(buffer, name)
            self._files.append(buffer.getvalue())
        self._made = 0

    def request(self) -> tuple[str, bytes, int | None]:
        """A path with its query, a body, and after how many bytes the caller hangs up, if so."""
        rng = self._random
        self._made += 1
        photo = rng.choice(self._files)
        if photo[:2] == b"\xff\xd8" and rng.random() < 0.8:
            photo = load.unique_jpeg(photo, self._made)
        fate = rng.random()
        if fate < 0.03:
            photo = photo[: len(photo) // 2]
        words = rng.choice((1, 1, 1, 1, 2, 5, 10, 30))
        body = load.multipart(
            photo, [f"thing {rng.randrange(500)} on the left" for _ in range(words)]
        )
        query = f"format={rng.choice(_FORMATS)}"
        if fate > 0.98:
            query = "threshold=7"
        leaves = None
        if 0.03 <= fate < 0.06:
            leaves = rng.randrange(len(body))
        elif 0.06 <= fate < 0.09:
            leaves = len(body)
        return f"/segment?{query}", body, leaves


class Visitor:
    """Sends a crowd's requests one after another over a connection that it keeps while it can."""

    def __init__(self, url: str, crowd: Crowd, outcomes: Counter[str], rng: random.Random) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._crowd, self._outcomes, self._random = crowd, outcomes, rng

    async def stay(self, until: float) -> None:
        """Ask until that time of `time.monotonic`."""
        while time.monotonic() < until:
            path, body, leaves = self._crowd.request()
            try:
                async with asyncio.timeout(90):
                    outcome = await self._ask(path, body, leaves)
            except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
                outcome = type(error).__name__
            self._outcomes[outcome] += 1
            if self._random.random() < 0.1:
                await asyncio.sleep(self._random.expovariate(1.0))

    async def _ask(self, path: str, body: bytes, leaves: int | None) -> str:
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=2**22)
        try:
            head = (
                f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nConnection: close\r\n"
                f"Content-Type: {load.Bodies.content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            writer.write(head.encode() + body[:leaves])
            await writer.drain()
            if leaves is not None:
                await asyncio.sleep(self._random.uniform(0, 0.3))
                return "left"
            answer = await reader.read()
            return answer[9:12].decode()
        finally:
            writer.close()


async def visit(url: str, pid: int, options: argparse.Namespace) -> dict[str, Any]:
    """The whole time; (minutes, MiB of the process, MiB of its caches) and outcomes."""
    outcomes: Counter[str] = Counter()
    crowd = Crowd(options.seed)
    start = time.monotonic()
    until = start + 60 * options.minutes
    visitors = [
        asyncio.ensure_future(
            Visitor(url, crowd, outcomes, random.Random(options.seed + place)).stay(until)
        )
        for place in range(options.workers)
    ]
    memory: list[tuple[float, float, float]] = []
    told_at = start
    while (now := time.monotonic()) < until:
        cached = await asyncio.to_thread(cached_mib, url)
        memory.append(((now - start) / 60, resident_mib(pid), cached))
        if now - told_at > 6 * options.minutes:
            told_at = now
            minutes, mib, _ = memory[-1]
            print(f"{minutes:.0f} minutes: {mib:.0f} MiB, {outcomes.total()} requests", flush=True)
        await asyncio.sleep(0.5)
    await asyncio.gather(*visitors)
    return {"memory": memory, "outcomes": dict(outcomes)}


def cached_mib(url: str) -> float:
    """What the service's caches hold."""
    with urlopen(urljoin(url, "/metrics"), timeout=30) as answer:
        text = answer.read().decode()
    held = re.findall(r"^segvlm_cache_bytes{.*} (\S+)$", text, re.MULTILINE)
    return sum(map(float, held)) / 2**20


def tenths(memory: list[tuple[float, float, float]]) -> Iterator[tuple[float, float]]:
    """The median MiB of each tenth of the time, and what the caches held at its beginning."""
    size = max(1, len(memory) // 10)
    for place in range(0, 10 * size, size):
        if part := memory[place : place + size]:
            yield statistics.median(mib for _, mib, _ in part), part[0][2]


def verdict(parts: list[tuple[float, float]]) -> str:
    """From the `tenths`: how much memory grew since the caches were full."""
    most = max(cached for _, cached in parts)
    first = next(place for place, (_, cached) in enumerate(parts) if cached >= _FULL * most)
    if first == len(parts) - 1:
        return "the caches were never full for a tenth of the time; run it for longer"
    growth = parts[-1][0] / parts[first][0] - 1
    told = "flat" if growth <= _LIMIT else "GROWS"
    return f"growth since tenth {first + 1}, which began with full caches: {growth:+.1%} ({told})"


def plot(result: dict[str, Any], path: Path) -> None:
    """Memory over time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.5), layout="tight")
    minutes, mib, cached = zip(*result["memory"], strict=True)
    axes.plot(minutes, mib, linewidth=0.5)
    axes.plot(minutes, cached, color="grey", label="caches")
    size = result["memory"][-1][0] / len(result["tenths"])
    places = [size * (place + 0.5) for place in range(len(result["tenths"]))]
    axes.plot(places, [mib for mib, _ in result["tenths"]], "o-", label="median of each tenth")
    axes.set(xlabel="minutes", ylabel="MiB resident", ylim=(0, None))
    axes.set_title(f"{sum(result['outcomes'].values())} mixed requests", fontsize=10)
    axes.legend()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--workers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--backend", default="onnx")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    with our_service(backend=options.backend) as (url, pid):
        result = asyncio.run(visit(url, pid, options))
    result["machine"] = machine.describe()
    result["tenths"] = list(tenths(result["memory"]))
    print(f"{result['machine']}\n{options.minutes:g} minutes: {result['outcomes']}")
    print("MiB, median of each tenth: " + ", ".join(f"{mib:.0f}" for mib, _ in result["tenths"]))
    print(verdict(result["tenths"]))
    if options.plot:
        plot(result, options.plot)
    if options.json:
        options.json.write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
