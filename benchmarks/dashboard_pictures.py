"""Draw the dashboards' pictures: two replicas, a Prometheus, and some minutes of every kind of use.

    python -m benchmarks.dashboard_pictures --out docs/images [--minutes 10]

Callers of all protocols come as many as two replicas on two cores take, in the second third of the
time far more; two cameras stream all the while, with keys of their own. Prometheus is ours but for
the addresses. Needs Prometheus (Debian's package prometheus) and matplotlib.
"""

from __future__ import annotations

import argparse
import base64
import json
import random
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import yaml
from websockets.exceptions import WebSocketException
from websockets.sync.client import ClientConnection, connect

from benchmarks import load
from benchmarks.served import ROOT, other_server, our_service
from deploy.grafana import render
from service.api_keys import make_key

_CALLERS, _CROWD = 6, 60  # at a time, ordinarily and in the second third
_PAUSE = 1.0  # seconds between two requests of a caller, on average
_FRAMES = 8.0  # a second of a camera
_LIMITS = {"gallery": "", "notebook": "rate=2 burst=4", "camera": "", "toy-camera": "rate=3"}
_TEXTS = ("the person", "the car on the left", "the red cup", "a dog", "the window")

Ask = Callable[[bytes, str], dict[str, Any]]


def _segment(photo: bytes, text: str) -> dict[str, Any]:
    return {"url": "/segment", "files": {"image": photo}, "data": {"expression": text}}


def _infer(photo: bytes, text: str) -> dict[str, Any]:
    encoded = base64.b64encode(photo).decode()
    inputs = [
        {"name": "image", "datatype": "BYTES", "shape": [1], "data": [encoded]},
        {"name": "expression", "datatype": "BYTES", "shape": [1], "data": [text]},
    ]
    document = {"inputs": inputs, "outputs": [{"name": "rle"}]}
    return {"url": "/v2/models/segvlm-lite/infer", "json": document}


def _hugging_face(photo: bytes, text: str) -> dict[str, Any]:
    return {"url": "/hf/image-segmentation", "params": {"expression": text}, "content": photo}


def _roboflow(photo: bytes, text: str) -> dict[str, Any]:
    image = {"type": "base64", "value": base64.b64encode(photo).decode()}
    document = {"image": image, "prompts": [{"type": "text", "text": text}], "format": "rle"}
    return {"url": "/sam3/concept_segment", "json": document}


def _label_studio(photo: bytes, text: str) -> dict[str, Any]:
    """Four photos, as a project asks for them."""
    config = (
        "<View><Image name='i' value='$image'/><BrushLabels name='b' toName='i'>"
        f"<Label value='{text}'/></BrushLabels></View>"
    )
    images = [load.unique_jpeg(photo, number) for number in range(4)]
    tasks = [
        {"data": {"image": "data:image/jpeg;base64," + base64.b64encode(image).decode()}}
        for image in images
    ]
    document = {"label_config": config, "tasks": tasks}
    return {"url": "/label-studio/predict", "json": document}


def _mistaken(photo: bytes, text: str) -> dict[str, Any]:
    return _segment(photo[:100], text)


def _hurried(photo: bytes, text: str) -> dict[str, Any]:
    return {**_segment(photo, text), "headers": {"X-Request-Timeout": "0.3"}}


ASKS: tuple[tuple[Ask, int], ...] = (  # and how often of a hundred
    (_segment, 62),
    (_infer, 14),
    (_hugging_face, 8),
    (_roboflow, 8),
    (_label_studio, 2),
    (_mistaken, 3),
    (_hurried, 3),
)


class Crowd:
    """Callers and cameras, each in a thread, until told to stop."""

    def __init__(self, addresses: Sequence[str], keys: dict[str, str]) -> None:
        self._addresses, self._keys = addresses, keys
        self._photos = load.drawn_jpegs(8, 640, 480)
        self._numbers = count()
        self._stop = threading.Event()
        self._callers = _CALLERS
        self._threads = [
            *(threading.Thread(target=self._call, args=(number,)) for number in range(_CROWD)),
            *(
                threading.Thread(target=self._film, args=(address, name))
                for address, name in zip(addresses, ("camera", "toy-camera"), strict=True)
            ),
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def come(self, callers: int) -> None:
        self._callers = callers

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _photo(self) -> bytes:
        number = next(self._numbers)
        return load.unique_jpeg(self._photos[number % len(self._photos)], number)

    def _call(self, number: int) -> None:
        rng = random.Random(number)
        asks, weights = zip(*ASKS, strict=True)
        with httpx.Client(timeout=60) as client:
            while not self._stop.wait(rng.expovariate(1 / _PAUSE)):
                if number >= self._callers:
                    continue
                (ask,) = rng.choices(asks, weights)
                asked = ask(self._photo(), rng.choice(_TEXTS))
                name = rng.choices(("gallery", "notebook", None), (80, 18, 2))[0]
                headers = {**asked.pop("headers", {}), "X-API-Key": self._keys.get(name or "", "?")}
                url = rng.choice(self._addresses) + asked.pop("url")
                with suppress(httpx.TimeoutException):  # in a crowd some lose patience
                    client.post(url, headers=headers, **asked)

    def _film(self, address: str, name: str) -> None:
        """A camera that is switched off and on each minute."""
        url = address.replace("http:", "ws:") + "/stream"
        header = {"X-API-Key": self._keys[name]}
        while not self._stop.wait(2):
            end = time.monotonic() + 60
            try:
                with connect(url, additional_headers=header, compression=None) as stream:
                    stream.send(json.dumps({"expressions": ["the person"]}))
                    threading.Thread(target=_take_all, args=(stream,)).start()
                    while time.monotonic() < end and not self._stop.wait(1 / _FRAMES):
                        stream.send(self._photo())
            except WebSocketException:
                pass  # refused or cut off; the dashboard shows it


def _take_all(stream: ClientConnection) -> None:
    with suppress(WebSocketException):
        for _ in stream:
            pass


@contextmanager
def _prometheus(directory: Path, addresses: Sequence[str], key: str) -> Iterator[str]:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text("utf-8"))
    config["rule_files"] = [str(ROOT / "deploy/prometheus/rules/*.yml")]
    targets = [address.removeprefix("http://") for address in addresses]
    config["scrape_configs"] = [
        {
            "job_name": "segvlm",
            "authorization": {"credentials": key},
            "static_configs": [{"targets": targets}],
        }
    ]
    path = directory / "prometheus.yml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    command = [
        "prometheus",
        f"--config.file={path}",
        f"--storage.tsdb.path={directory / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    ]
    with other_server(command, port, "/-/ready", {}):
        yield f"http://127.0.0.1:{port}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--minutes", type=float, default=10.0, help="of load, and shown")
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        made = {name: make_key(name) for name in (*_LIMITS, "prometheus")}
        lines = [f"{line} {_LIMITS.get(name, '')}\n" for name, (_, line) in made.items()]
        (directory / "keys").write_text("".join(lines), encoding="utf-8")
        keys = {name: key for name, (key, _) in made.items()}
        settings = {"api_keys_file": directory / "keys", "model_threads": 1, "max_queue": 24}
        addresses = [
            stack.enter_context(our_service(**settings))[0].removesuffix("/segment")
            for _ in range(2)
        ]
        server = stack.enter_context(_prometheus(directory, addresses, keys["prometheus"]))
        crowd = Crowd(addresses, keys)
        stack.callback(crowd.stop)
        crowd.start()
        for callers in (_CALLERS, _CROWD, _CALLERS):
            crowd.come(callers)
            time.sleep(20 * options.minutes)  # a third
        minutes = str(options.minutes)
        render.main(["--prometheus", server, "--out", str(options.out), "--minutes", minutes])


if __name__ == "__main__":
    main()
