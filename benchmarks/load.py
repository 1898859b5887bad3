"""A client that loads a service over HTTP, on schedule or as fast as it answers.

    python -m benchmarks.load URL --rate 20 --seconds 10        open loop: arrivals on schedule
    python -m benchmarks.load URL --workers 8 --seconds 10      closed loop: each asks, waits, asks

In an open loop a request's time counts from when it *should* have been sent, so a server that
stalls is charged for everybody who queues behind the stall; a closed loop would politely wait.
Arrivals are Poisson, from a seed. Bodies are drawn JPEGs (or files), each made unique by a comment
in the file, so that no cache of the server answers; `--repeat` leaves them as they are.

It writes bytes that were made beforehand to plain sockets: a fuller HTTP client would take more
processor time than some of the servers, on the same cores. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image, ImageFilter

_BOUNDARY = "segvlm-benchmark"
_EXPRESSIONS = ("the person", "the car on the left", "the red cup", "a dog", "the window")
_TIMEOUT = 60.0  # seconds until an answer counts as none


def drawn_jpegs(number: int, width: int, height: int, quality: int = 90) -> list[bytes]:
    """Smooth colours under a fine texture: about as many bytes a pixel as photos have."""
    made = []
    for seed in range(number):
        rng = np.random.default_rng(seed)
        colours = Image.fromarray(rng.integers(0, 256, (15, 20, 3), dtype=np.uint8))
        smooth = np.asarray(colours.resize((width, height), Image.Resampling.BICUBIC), np.float32)
        noise = Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        texture = np.asarray(noise.filter(ImageFilter.GaussianBlur(1)), np.float32) - 128
        buffer = BytesIO()
        picture = Image.fromarray(np.clip(smooth + texture, 0, 255).astype(np.uint8))
        picture.save(buffer, "JPEG", quality=quality)
        made.append(buffer.getvalue())
    return made


def unique_jpeg(jpeg: bytes, number: int) -> bytes:
    """The same picture in another file: a comment segment after the start of the image."""
    comment = number.to_bytes(8, "big")
    return jpeg[:2] + b"\xff\xfe" + (2 + len(comment)).to_bytes(2, "big") + comment + jpeg[2:]


def multipart(jpeg: bytes, expressions: list[str]) -> bytes:
    """The body of `POST /segment`."""
    head = f"--{_BOUNDARY}\r\nContent-Disposition: form-data; name="
    parts = [f'{head}"image"; filename="a.jpg"\r\n\r\n'.encode(), jpeg, b"\r\n"]
    parts += [f'{head}"expression"\r\n\r\n{text}\r\n'.encode() for text in expressions]
    return b"".join([*parts, f"--{_BOUNDARY}--\r\n".encode()])


@dataclass
class Bodies:
    """An endless supply of request bodies, and their Content-Type."""

    jpegs: list[bytes]
    expressions: int = 1
    repeat: bool = False
    made: int = 0
    content_type: str = f"multipart/form-data; boundary={_BOUNDARY}"

    def next(self) -> bytes:
        self.made += 1
        jpeg = self.jpegs[self.made % len(self.jpegs)]
        if not self.repeat:
            jpeg = unique_jpeg(jpeg, self.made)
        first = self.made % len(_EXPRESSIONS)
        texts = [
            _EXPRESSIONS[(first + place) % len(_EXPRESSIONS)] + (f" {place}" if place else "")
            for place in range(self.expressions)
        ]
        return multipart(jpeg, texts)


@dataclass
class Client:
    """Keep-alive connections to one address, as many as there are requests at a time."""

    url: str
    bodies: Bodies
    seconds: list[float] = field(default_factory=list)
    """Of every request that was answered with a 200."""
    outcomes: Counter[str] = field(default_factory=Counter)
    _idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = field(default_factory=list)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        self._path = parts.path or "/"

    async def ask(self, due: float) -> None:
        """One request; its time counts from `due`, a time of `perf_counter`."""
        try:
            async with asyncio.timeout(_TIMEOUT):
                status = await self._exchange(self.bodies.next())
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            self.outcomes[type(error).__name__] += 1
            return
        self.outcomes[status] += 1
        if status == "200":
            self.seconds.append(time.perf_counter() - due)

    async def _connection(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """One that is idle and that the server has not closed meanwhile, or a new one."""
        while self._idle:
            reader, writer = self._idle.pop()
            if not reader.at_eof():
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self._host, self._port, limit=2**22)

    async def _exchange(self, body: bytes) -> str:
        reader, writer = await self._connection()
        head = (
            f"POST {self._path} HTTP/1.1\r\nHost: {self._host}\r\n"
            f"Content-Type: {self.bodies.content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        try:
            writer.write(head.encode() + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            fields = dict(
                line.lower().split(b": ", 1) for line in answer.split(b"\r\n")[1:] if b": " in line
            )
            if fields.get(b"transfer-encoding") == b"chunked":
                await _read_chunks(reader)
            else:
                await reader.readexactly(int(fields[b"content-length"]))
        except BaseException:
            writer.close()
            raise
        if fields.get(b"connection") == b"close":
            writer.close()
        else:
            self._idle.append((reader, writer))
        return answer[9:12].decode()


async def _read_chunks(reader: asyncio.StreamReader) -> None:
    while size := int(await reader.readuntil(b"\r\n"), 16):
        await reader.readexactly(size + 2)
    await reader.readexactly(2)


async def open_loop(client: Client, rate: float, seconds: float, seed: int = 0) -> float:
    """`rate` requests a second for `seconds`, then wait for what is under way; seconds it took."""
    rng, tasks = random.Random(seed), []
    start = due = time.perf_counter()
    while True:
        due += rng.expovariate(rate)
        if due - start > seconds:
            break
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.ensure_future(client.ask(due)))
    await asyncio.gather(*tasks)
    return time.perf_counter() - start


async def closed_loop(client: Client, workers: int, seconds: float) -> float:
    """`workers` that each ask again as soon as they are answered; seconds it took."""
    start = time.perf_counter()

    async def work() -> None:
        while (now := time.perf_counter()) - start < seconds:
            before = client.outcomes["200"]
            await client.ask(now)
            if client.outcomes["200"] == before:
                await asyncio.sleep(0.05)  # refused: a client that comes back at once is an attack

    await asyncio.gather(*(work() for _ in range(workers)))
    return time.perf_counter() - start


def summary(client: Client, took: float, cpu: float) -> dict[str, Any]:
    """Rates, latencies in milliseconds and outcomes; `cpu`: this client's processor seconds."""
    asked = sum(client.outcomes.values())
    quantiles = (50, 90, 99, 99.9)
    latency = np.percentile(client.seconds, quantiles) * 1000 if client.seconds else [0.0] * 4
    return {
        "asked_per_second": asked / took,
        "answered_per_second": len(client.seconds) / took,
        "milliseconds": {
            f"p{q:g}": float(value) for q, value in zip(quantiles, latency, strict=True)
        },
        "outcomes": dict(client.outcomes),
        "seconds": took,
        "client_cores": cpu / took,
    }


def run_load(run: Callable[[Client], Any], client: Client) -> dict[str, Any]:
    """Run a loop in an event loop of its own and sum it up."""
    try:
        import uvloop

        factory = uvloop.new_event_loop
    except ImportError:
        factory = None
    cpu = time.process_time()
    with asyncio.Runner(loop_factory=factory) as runner:
        took = runner.run(run(client))
    return summary(client, took, time.process_time() - cpu)


def add_body_options(parser: argparse.ArgumentParser) -> None:
    """What is sent; see `bodies_from`."""
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--expressions", type=int, default=1, help="in each request")
    parser.add_argument("--repeat", action="store_true", help="let the server's cache answer")
    parser.add_argument("--photos", type=Path, help="a folder of JPEGs instead of drawn ones")


def bodies_from(options: argparse.Namespace) -> Bodies:
    """Raises ValueError for a folder without JPEGs."""
    if options.photos is None:
        jpegs = drawn_jpegs(32, options.width, options.height)
    else:
        jpegs = [path.read_bytes() for path in sorted(options.photos.glob("*.jp*g"))[:256]]
        if not jpegs:
            raise ValueError(f"there is no *.jpg in {options.photos}; name a folder of JPEGs")
    return Bodies(jpegs, options.expressions, options.repeat)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("url")
    loop = parser.add_mutually_exclusive_group(required=True)
    loop.add_argument("--rate", type=float, help="requests a second, open loop")
    loop.add_argument("--workers", type=int, help="closed loop")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    add_body_options(parser)
    options = parser.parse_args()
    client = Client(options.url, bodies_from(options))
    if options.rate:
        result = run_load(
            lambda client: open_loop(client, options.rate, options.seconds, options.seed), client
        )
    else:
        result = run_load(
            lambda client: closed_loop(client, options.workers, options.seconds), client
        )
    json.dump(result, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
