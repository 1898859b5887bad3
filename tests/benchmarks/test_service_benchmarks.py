"""The service's benchmarks measure what they say: requests, schedules, idle time, memory."""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import inference, load, peers, serving, soak, timeline


class Stub:
    """An HTTP server that answers after `delay` seconds, and can be made to stall."""

    def __init__(self, delay: float = 0.0, status: str = "200 OK") -> None:
        self.delay, self.status = delay, status
        self.stalls: threading.Event = threading.Event()
        self.bodies: list[bytes] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/segment"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        stream = connection.makefile("rb")
        while head := stream.readline():
            length = 0
            while (line := stream.readline()).strip():
                if line.lower().startswith(b"content-length"):
                    length = int(line.split(b":")[1])
            assert head.startswith(b"POST /segment HTTP/1.1")
            self.bodies.append(stream.read(length))
            time.sleep(self.delay)
            while self.stalls.is_set():
                time.sleep(0.005)
            answer = f"HTTP/1.1 {self.status}\r\nContent-Length: 2\r\n\r\n{{}}"
            connection.sendall(answer.encode())

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def stub() -> Iterator[Stub]:
    made = Stub()
    yield made
    made.close()


@pytest.fixture(scope="module")
def jpegs() -> list[bytes]:
    return load.drawn_jpegs(2, 64, 48)


def run_open(client: load.Client, rate: float, seconds: float) -> dict[str, Any]:
    return load.run_load(lambda c: load.open_loop(c, rate, seconds), client)


def test_open_loop_keeps_its_schedule_and_counts_everything(stub: Stub, jpegs: list[bytes]) -> None:
    result = run_open(load.Client(stub.url, load.Bodies(jpegs)), 200, 1.0)
    asked = sum(result["outcomes"].values())
    assert asked == len(stub.bodies) == result["outcomes"]["200"]
    assert 140 < asked < 260
    assert len(set(stub.bodies)) == asked  # every body is another
    assert result["milliseconds"]["p50"] < 50


def test_open_loop_charges_a_stall_to_everybody_behind_it(stub: Stub, jpegs: list[bytes]) -> None:
    """Stalled for half of the time, half of the requests must be late: a closed loop sees a few."""
    client = load.Client(stub.url, load.Bodies(jpegs))

    async def main(client: load.Client) -> float:
        loading = asyncio.ensure_future(load.open_loop(client, 100, 1.0))
        await asyncio.sleep(0.4)
        stub.stalls.set()
        await asyncio.sleep(0.5)
        stub.stalls.clear()
        return await loading

    result = load.run_load(main, client)
    late = sum(seconds > 0.1 for seconds in client.seconds)
    assert late > 0.25 * result["outcomes"]["200"]
    assert result["milliseconds"]["p99"] > 350


def test_refusals_are_outcomes_and_no_latencies(jpegs: list[bytes]) -> None:
    stub = Stub(status="503 Service Unavailable")
    result = run_open(load.Client(stub.url, load.Bodies(jpegs)), 50, 0.5)
    assert set(result["outcomes"]) == {"503"}
    assert result["answered_per_second"] == 0
    stub.close()


def test_closed_loop_has_as_many_requests_as_workers_at_a_time(jpegs: list[bytes]) -> None:
    stub = Stub(delay=0.05)
    client = load.Client(stub.url, load.Bodies(jpegs))
    result = load.run_load(lambda c: load.closed_loop(c, 4, 1.0), client)
    assert 40 < result["answered_per_second"] < 85  # 4 workers / 0.05 s = 80
    stub.close()


def test_unique_jpeg_is_the_same_picture(jpegs: list[bytes]) -> None:
    from service.image_input import decode_photo

    one, other = load.unique_jpeg(jpegs[0], 1), load.unique_jpeg(jpegs[0], 2)
    assert one != other
    whole = decode_photo(jpegs[0], 10**6).picture.tobytes()
    assert decode_photo(one, 10**6).picture.tobytes() == whole


# -- the programs, short -----------------------------------------------------------------------


def test_serving(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Against our own service on the fake backend; the table has what the JSON has."""
    out, picture = tmp_path / "serving.json", tmp_path / "serving.png"
    quick = "--backend fake --no-bare --seconds 1 --workers 4 --shares 0.5 2 --width 96 --height 64"
    serving.main([*quick.split(), "--json", str(out), "--plot", str(picture)])
    result = json.loads(out.read_text("utf-8"))
    printed = capsys.readouterr().out
    assert f"Closed loop: {result['closed']['answered_per_second']:.1f} requests/s" in printed
    alone = result["unloaded_milliseconds"]
    assert 0 < alone["decode"] < alone["client"]
    assert alone["outside"] < alone["client"]
    assert [row["share"] for row in result["open"]] == [0.5, 2]
    assert all(set(row["outcomes"]) <= {"200", "503"} for row in result["open"])
    assert result["open"][0]["outcomes"]["200"] > 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_serving_under_a_flood(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "flood.json"
    quick = "--flood --backend fake --seconds 1 --single-rate 10 --width 96 --height 64"
    serving.main([*quick.split(), "--json", str(out)])
    result = json.loads(out.read_text("utf-8"))
    assert result["expressions"] == 10
    assert result["flooded"]["outcomes"]["200"] > 0
    assert "the flood: 10 expressions each" in capsys.readouterr().out


def test_inference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "pair_gflop", lambda config: 1.0)  # counting takes long
    out = tmp_path / "inference.json"
    arguments = ["--batch", "1", "2", "--seconds", "0.2", "--stages", "--json", str(out)]
    inference.main(arguments)
    result = json.loads(out.read_text("utf-8"))
    assert [(row["backend"], row["batch"]) for row in result["rows"]] == [
        ("onnx-cpu", 1),
        ("onnx-cpu", 2),
    ]
    for row in result["rows"]:
        assert 0 < row["p50_ms"] <= row["p99_ms"]
        # The two were measured one after the other: they must tell of the same speed.
        assert row["pairs_per_second"] == pytest.approx(
            1000 * row["batch"] / row["p50_ms"], rel=0.8
        )
        assert row["peak_share"] > 0
    stages = result["stages"]["int8"]  # which the bundled model has
    assert set(stages) == {"encode image", "encode text", "decode"}
    assert "onnx-cpu" in capsys.readouterr().out


def test_timeline_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, picture = tmp_path / "timeline.json", tmp_path / "timeline.png"
    quick = f"x --backend fake --requests 12 --together 6 --width 96 --height 64 --json {out}"
    monkeypatch.setattr(sys, "argv", [*quick.split(), "--plot", str(picture)])
    timeline.main()
    result = json.loads(out.read_text("utf-8"))
    assert sum(result["batch_sizes"]) == 12
    assert result["device_busy_seconds"] <= result["seconds"] * 1.001
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_idle_time_counts_only_while_something_waits() -> None:
    batches = [(0.0, 1.0, 1), (1.5, 2.0, 1), (4.0, 5.0, 2)]
    waiting = [(0.5, 1.5), (3.8, 4.0)]
    made = timeline.Timeline(batches, waiting, {})
    assert made.idle_while_waiting() == pytest.approx(0.5 + 0.2)
    assert timeline.lanes([(0, 2), (1, 3), (2, 4)]) == [[(0, 2), (2, 4)], [(1, 3)]]


def test_soak_tells_growth_from_a_peak() -> None:
    flat = [(t / 100, 500.0 + (900 if t % 50 == 7 else 0), 256.0) for t in range(1000)]
    rising = [(t / 100, 500.0 + t / 10, 256.0) for t in range(1000)]
    assert set(soak.tenths(flat)) == {(500.0, 256.0)}
    assert "tenth 1, which began with full caches: +0.0% (flat)" in soak.verdict(
        [*soak.tenths(flat)]
    )
    assert "(GROWS)" in soak.verdict([*soak.tenths(rising)])


def test_soak_does_not_count_the_caches_that_fill() -> None:
    filling = [(min(300.0, 100.0 + 80 * place), min(200.0, 80.0 * place)) for place in range(10)]
    assert "tenth 4, which began with full caches: +0.0% (flat)" in soak.verdict(filling)
    late = [(500.0, 10.0 * place) for place in range(10)]
    assert "run it for longer" in soak.verdict(late)


def test_soak_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "soak.json"
    quick = f"x --backend fake --minutes 0.08 --workers 3 --json {out}"
    monkeypatch.setattr(sys, "argv", quick.split())
    soak.main()
    outcomes = json.loads(out.read_text("utf-8"))["outcomes"]
    assert outcomes["200"] > 3
    assert set(outcomes) <= {"200", "400", "422", "503", "left"}


def test_peers_table(capsys: pytest.CaptureFixture[str]) -> None:
    """The servers themselves need an environment of their own; what is told of them does not."""

    def told(rate: float, p99: float, **outcomes: int) -> dict[str, Any]:
        latency = {"p50": p99 / 2, "p99": p99}
        return {"answered_per_second": rate, "milliseconds": latency, "outcomes": outcomes}

    rows = {"SegVLM": [told(20.0, 90.0, ok=9)], "LitServe": [told(10.0, 400.0, ok=5, late=2)]}
    rates = {"SegVLM": 8.0, "LitServe": 8.0}
    names = ("common", "own", "overload")
    peers.print_tables(
        {
            "machine": "here",
            "image": "640 x 480",
            "bare_pairs_per_second": [20.0, 30.0],
            "closed": rows,
            "rates": dict.fromkeys(names, rates),
            "open": dict.fromkeys(names, rows),
        }
    )
    printed = capsys.readouterr().out
    assert "bare backend 25.0/s" in printed
    assert "| SegVLM | 20.0 | 80.0% |" in printed
    assert "| LitServe | 8.0 | 10.0 | 200 | 400 | 5 x ok, 2 x late |" in printed


def test_bodies_of_a_folder_without_photos(tmp_path: Path) -> None:
    options = argparse.Namespace(photos=tmp_path, expressions=1, repeat=False)
    with pytest.raises(ValueError, match=r"\*\.jpg"):
        load.bodies_from(options)
