"""The page in a real browser, before a real server: what the tests of the page share."""

from __future__ import annotations

import base64
import json
import re
import threading
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
from numpy.typing import NDArray
from playwright.sync_api import BrowserContext, ConsoleMessage, Page, Request

from service.server import Server
from tests.waiting import PATIENCE, wait_until

# Through a canvas of its own: the page's is not one that is read often.
CANVAS = """() => {
  const { width, height } = document.getElementById("picture");
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(document.getElementById("picture"), 0, 0);
  const pixels = context.getImageData(0, 0, width, height).data;
  let text = "";
  for (let at = 0; at < pixels.length; at += 8192) {
    text += String.fromCharCode(...pixels.subarray(at, at + 8192));
  }
  return [height, width, btoa(text)];
}"""
DRAWN = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


class Running:
    """A watched service on the fake backend behind uvicorn, on a port of its own."""

    def __init__(self, service: Any) -> None:
        self.service = service
        self.server = Server(service.settings, service.engine)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        wait_until(lambda: self.server.started, "the server to listen")
        service.wait_ready()
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"

    def stop(self) -> None:
        self.service.backend.gate.set()
        self.server.should_exit = True
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()


class Visit:
    """One tab on the page at `url`; `faults` are what its console complains of."""

    def __init__(self, context: BrowserContext, url: str) -> None:
        self.url = url
        self.faults: list[str] = []
        self.hosts: set[str] = set()
        self.page: Page = context.new_page()
        self.page.set_default_timeout(PATIENCE * 1000)
        self.page.on("console", self._hear)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("request", self._see)
        self.page.goto(url)

    def _hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(message.text)

    def _see(self, request: Request) -> None:
        if not request.url.startswith(("blob:", "data:")):
            self.hosts.add(httpx.URL(request.url).netloc.decode())

    def expect_fault(self, pattern: str) -> None:
        """The console must have complained of this, and of nothing else."""
        wait_until(lambda: self.page.evaluate("1") and self.faults, f"a complaint of {pattern}")
        assert all(re.search(pattern, fault) for fault in self.faults), self.faults
        self.faults.clear()

    def choose(self, body: bytes, name: str = "photo.png", media_type: str = "image/png") -> None:
        """Choose a file, and wait until it is shown or refused."""
        file = {"name": name, "mimeType": media_type, "buffer": body}
        self.page.set_input_files("#file", files=[file])
        self.page.wait_for_function(
            "(name) => document.querySelector('#caption').textContent.startsWith(name)"
            " || !document.querySelector('#trouble').hidden",
            arg=name,
        )

    def ask(self, expression: str, state: str = "found") -> None:
        self.page.fill("#expression", expression)
        self.page.press("#expression", "Enter")
        self.page.locator(f"#finds li.{state}", has_text=expression).wait_for()

    def slide(self, name: str, value: float) -> None:
        """As a person drags it."""
        self.page.locator(f"#{name}").fill(str(value))

    def canvas(self) -> NDArray[np.uint8]:
        """What is drawn, (H, W, 3)."""
        self.page.evaluate(DRAWN)
        height, width, text = self.page.evaluate(CANVAS)
        pixels = np.frombuffer(base64.b64decode(text), np.uint8)
        return pixels.reshape(height, width, 4)[:, :, :3]

    def trouble(self) -> str:
        """The words in the box of what went wrong."""
        box = self.page.locator("#trouble p")
        box.wait_for()
        return str(box.inner_text())

    def download(self, selector: str, folder: Path) -> Path:
        with self.page.expect_download() as started:
            self.page.click(selector)
        path = folder / started.value.suggested_filename
        started.value.save_as(path)
        return path

    def download_json(self, selector: str, folder: Path) -> Any:
        return json.loads(self.download(selector, folder).read_text(encoding="utf-8"))


def segment(url: str, image: bytes, expressions: list[str], **options: Any) -> Any:
    """What the service itself answers."""
    answer = httpx.post(
        f"{url}segment",
        files={"image": image},
        data={"expression": expressions, **{name: str(each) for name, each in options.items()}},
        timeout=PATIENCE,
    )
    answer.raise_for_status()
    return answer.json()
