"""The service on the fake backend, in process, and photos to send to it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi import FastAPI
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from starlette.testclient import TestClient

from service.app import create_app
from service.backends.base import LoadOptions
from service.backends.fake import COLOURS, FakeBackend, load_fake
from service.engine import Engine
from service.metrics import Metrics
from service.server import Server
from service.settings import Settings
from tests.waiting import PATIENCE, wait_until


def in_thread(call: Callable[[], Any]) -> list[Any]:
    """Run a call; the list that comes back holds its result when it is done."""
    results: list[Any] = []
    threading.Thread(target=lambda: results.append(call()), daemon=True).start()
    return results


class WatchedBackend(FakeBackend):
    """The fake, with a gate before every decode and a record of what was run."""

    def __init__(self, batch_sizes: tuple[int, ...]) -> None:
        super().__init__(batch_sizes)
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self.images_encoded = 0
        self.texts_encoded = 0
        self.batches: list[int] = []
        self.threads: set[str] = set()
        self.poison: int | None = None

    def forget(self) -> None:
        """Forget what the warm-up did."""
        self.images_encoded = self.texts_encoded = 0
        self.batches.clear()
        self.entered.clear()

    def encode_image(self, images: NDArray[np.uint8]) -> Any:
        self.threads.add(threading.current_thread().name)
        self.images_encoded += len(images)
        return super().encode_image(images)

    def encode_text(self, tokens: NDArray[np.int64]) -> Any:
        self.texts_encoded += len(tokens)
        return super().encode_text(tokens)

    def decode(self, images: Any, texts: Any) -> Any:
        self.entered.set()
        assert self.gate.wait(PATIENCE), "the test never opened the gate"
        self.batches.append(len(images))
        if self.poison is not None and any((t.arrays[1] == self.poison).any() for t in texts):
            raise RuntimeError("this word is poison")
        return super().decode(images, texts)


@dataclass
class Service:
    """An application on a watched backend; `client` when its lifespan runs."""

    app: FastAPI
    engine: Engine
    settings: Settings
    backend: WatchedBackend
    stack: ExitStack = field(default_factory=ExitStack)
    _client: TestClient | None = None

    @property
    def client(self) -> TestClient:
        """A client of the application, whose lifespan it starts; ready when this returns."""
        if self._client is None:
            self._client = self.stack.enter_context(TestClient(self.app))
            self.wait_ready()
        return self._client

    def wait_ready(self) -> None:
        wait_until(lambda: self.engine.ready or not self.engine.alive, "the warm-up")
        assert self.engine.ready
        self.backend.forget()

    def metric(self, name: str, **labels: str) -> float:
        """One sample of the registry, 0.0 if it does not exist."""
        return self.engine.metrics.registry.get_sample_value(name, labels) or 0.0


@pytest.fixture
def make_service() -> Iterator[Callable[..., Service]]:
    """A factory: keyword arguments are settings, `image_size` and `word_length` the model's."""
    made: list[Service] = []

    def make(image_size: int = 64, word_length: int = 17, **options: Any) -> Service:
        settings = Settings(backend="fake", **options)
        load = LoadOptions(max_batch_size=settings.max_batch_size)
        model = load_fake(image_size, word_length, load)
        backend = WatchedBackend(model.backend.batch_sizes)
        model = replace(model, backend=backend)
        engine = Engine(model, settings, Metrics())
        made.append(Service(create_app(settings, engine), engine, settings, backend))
        return made[-1]

    yield make
    for service in made:
        service.backend.gate.set()
        service.stack.close()


@pytest.fixture
def service(make_service: Callable[..., Service]) -> Service:
    """A service with the default settings and a small model."""
    return make_service()


@dataclass(frozen=True)
class LiveService:
    """A service on a free port of this machine, as `python -m service serve` runs it."""

    url: str
    service: Service


@pytest.fixture
def make_live_service(
    make_service: Callable[..., Service],
) -> Iterator[Callable[..., LiveService]]:
    """A factory: the settings and sizes of `make_service`, but heard by other processes."""
    with ExitStack() as running:

        def make(**options: Any) -> LiveService:
            service = make_service(host="127.0.0.1", port=0, **options)
            server = Server(service.settings, service.engine)
            thread = threading.Thread(target=server.run, name="live-service")
            thread.start()

            def stop() -> None:
                server.should_exit = True
                thread.join(PATIENCE)

            running.callback(stop)
            wait_until(lambda: server.started and service.engine.ready, "the live service")
            host, port = server.servers[0].sockets[0].getsockname()
            return LiveService(f"http://{host}:{port}", service)

        yield make


@dataclass(frozen=True)
class Photo:
    """A picture of a red rectangle and a blue ring on grey, and where they are."""

    picture: Image.Image
    red: NDArray[np.bool_]
    blue: NDArray[np.bool_]

    def encoded(self, format_name: str = "PNG", **options: Any) -> bytes:
        buffer = BytesIO()
        self.picture.save(buffer, format_name, **options)
        return buffer.getvalue()


def draw_photo(width: int, height: int) -> Photo:
    picture = Image.new("RGB", (width, height), (128, 128, 128))
    draw = ImageDraw.Draw(picture)
    x, y = width / 10, height / 10
    draw.rectangle((x, 2 * y, 4 * x, 8 * y), fill=COLOURS["red"])
    draw.ellipse((5 * x, y, 9 * x, 7 * y), fill=COLOURS["blue"])
    draw.ellipse((6 * x, 2.5 * y, 8 * x, 5.5 * y), fill=(128, 128, 128))
    pixels = np.asarray(picture)
    red = (pixels == COLOURS["red"]).all(axis=-1)
    blue = (pixels == COLOURS["blue"]).all(axis=-1)
    return Photo(picture, red, blue)


@pytest.fixture(scope="session")
def photo() -> Photo:
    """640 x 400 pixels."""
    return draw_photo(640, 400)


@pytest.fixture(scope="session")
def small_photo() -> bytes:
    """A PNG of 96 x 64 pixels, for tests that look at anything but the mask."""
    return draw_photo(96, 64).encoded()


@pytest.fixture(scope="session")
def served_bundle(default_bundle: Path) -> Path:
    """The bundle that the repository ships."""
    return default_bundle
