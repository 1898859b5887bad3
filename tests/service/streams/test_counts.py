"""Every frame is counted once: received = answered + dropped + failed, whatever clients do."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.waiting import PATIENCE, wait_until

CLIENTS = 14


class Mixture:
    """Clients of every kind, each in a thread; what the honest ones were told is counted."""

    def __init__(self, running: Any, image: bytes) -> None:
        self.running, self.image = running, image
        self.told: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.stopping = threading.Event()
        self.faults: list[BaseException] = []
        kinds = (self.asking, self.flooding, self.every, self.mistaken, self.leaving, self.deaf)
        self.threads = [
            threading.Thread(target=self.guarded, args=(kinds[number % len(kinds)], number))
            for number in range(CLIENTS)
        ]

    def guarded(self, kind: Callable[[random.Random], None], number: int) -> None:
        try:
            kind(random.Random(number))
        except (ConnectionClosed, InvalidStatus):
            assert self.stopping.is_set()
        except BaseException as fault:
            self.faults.append(fault)
            raise

    def note(self, stream: Any) -> None:
        answer = stream.receive()
        self.told[answer.get("reason", answer["type"])] += 1

    def asking(self, rng: random.Random) -> None:
        """One frame at a time, until the stop."""
        stream = self.running.stream(expressions=["a"])
        while True:
            stream.send(self.image)
            self.note(stream)

    def flooding(self, rng: random.Random) -> None:
        """The newest only, far more than the model answers."""
        stream = self.running.stream(expressions=[f"thing {rng.random()}"])
        threading.Thread(target=self.drinking, args=(stream,), daemon=True).start()
        while True:
            stream.send(self.image)
            time.sleep(0.001)

    def drinking(self, stream: Any) -> None:
        try:
            while True:
                self.note(stream)
        except ConnectionClosed:
            pass

    def every(self, rng: random.Random) -> None:
        stream = self.running.stream(expressions=["b"], newest=False)
        while True:
            stream.send(*[self.image] * 5)
            for _ in range(5):
                self.note(stream)

    def mistaken(self, rng: random.Random) -> None:
        """Damaged frames, garbage, frames before any configuration."""
        stream = self.running.stream()
        stream.send(self.image)
        self.note(stream)
        while True:
            stream.socket.send(rng.choice(["garbage", '{"expressions": ["c"]}', "[1]"]))
            self.note(stream)
            stream.send(self.image[: rng.randrange(len(self.image))])
            self.note(stream)

    def leaving(self, rng: random.Random) -> None:
        """Gone with frames under way, in the middle of one even; again and again."""
        while not self.stopping.is_set():
            stream = self.running.stream(expressions=["d"], newest=rng.random() < 0.5)
            stream.send(*[self.image] * rng.randrange(1, 6))
            if rng.random() < 0.5:
                stream.socket.socket.sendall(b"\x82\xfe\xff\xff" + b"mask" + bytes(100))
            stream.socket.socket.shutdown(2)
            time.sleep(rng.random() * 0.05)

    def deaf(self, rng: random.Random) -> None:
        """Sends and takes no answer."""
        stream = self.running.deaf_stream(expressions=["e"] * 20, format="png", newest=False)
        while True:
            stream.send(self.image)


def test_every_frame_is_counted_once(serve: Callable[..., Any], small_photo: bytes) -> None:
    running = serve(max_queue=8, max_streams=CLIENTS + 4, stream_idle_timeout=5.0)
    mixture = Mixture(running, small_photo)
    for thread in mixture.threads:
        thread.start()
    wanted = ("answered", "dropped", "bad_image", "queue_full", "disconnected", "invalid_field")

    def mixed() -> bool:
        counted = running.frames()
        return not mixture.faults and all(counted.get(name, 0) >= 10 for name in wanted[:-1])

    wait_until(lambda: mixed() or mixture.faults, f"10 each of {wanted}")
    mixture.stopping.set()
    running.server.handle_exit(signal.SIGTERM, None)
    for thread in mixture.threads:
        thread.join(PATIENCE)
    running.thread.join(PATIENCE)
    assert not running.thread.is_alive()
    assert not mixture.faults
    counted = running.frames()
    assert set(wanted) <= set(counted)
    assert counted.pop("received") == sum(counted.values())
    # Nobody was told more than was counted.
    assert mixture.told["result"] <= counted["answered"]
    for reason in ("bad_image", "queue_full"):
        assert mixture.told[reason] <= counted[reason]
    assert running.service.metric("segvlm_streams_open") == 0
