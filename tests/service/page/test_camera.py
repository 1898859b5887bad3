"""The camera's frames over /stream. Chromium's own camera shows a moving test pattern.

One test is with the service's own stream; the others play a service that does what is hard to
bring about.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import WebSocketRoute

from tests.service.page.visits import Running, Visit, segment

pytestmark = pytest.mark.long(35)


class Stream:
    """Version 1 of the protocol, answered by the service's own /segment; and faults on request."""

    def __init__(self, tab: Visit) -> None:
        self.tab = tab
        self.questions: list[Any] = []
        self.frames: list[bytes] = []
        self.ignored: set[int] = set()
        self.bad: set[int] = set()
        self.end: tuple[int, str] | None = None
        self.route: WebSocketRoute | None = None
        self.opened = 0
        tab.page.route_web_socket("**/stream", self._open)

    def _open(self, route: WebSocketRoute) -> None:
        self.route = route
        self.opened += 1
        self.frames.clear()  # they are counted from 0 in each stream
        route.on_message(self._answer)

    def _answer(self, message: str | bytes) -> None:
        assert self.route is not None
        if isinstance(message, str):
            self.questions.append(json.loads(message))
            self._send(type="ready", model={"name": "played", "version": "1"})
            return
        number = len(self.frames)
        self.frames.append(message)
        if self.end is not None:
            self.route.close(code=self.end[0], reason=self.end[1])
        elif number in self.bad:
            self._send(
                type="error", frame=number, title="Not a readable image", detail="It is cut."
            )
        elif number not in self.ignored:
            question = self.questions[-1]
            options = {"format": question["format"]}
            if "threshold" in question:
                options["threshold"] = question["threshold"]
            answer = segment(self.tab.url, message, question["expressions"], **options)
            dropped = sum(each in self.ignored for each in range(number))
            self._send(type="result", frame=number, dropped=dropped, **answer)

    def _send(self, **members: Any) -> None:
        assert self.route is not None
        self.route.send(json.dumps(members))


def start(tab: Visit, expression: str | None = None) -> None:
    tab.page.click("#camera")
    tab.page.locator("#camera[aria-pressed=true]").wait_for()
    if expression:
        tab.ask(expression)


def wait_for_frames(tab: Visit, stream: Stream, number: int) -> None:
    """Until so many were sent; the browser's messages are heard while it is waited for."""
    for _ in range(600):
        if len(stream.frames) >= number:
            return
        tab.page.wait_for_timeout(50)
    pytest.fail(f"{len(stream.frames)} frames came, not {number}")


def test_frames_are_masked_and_the_question_may_change(
    serve: Callable[..., Running], visit: Callable[..., Visit]
) -> None:
    tab = visit(serve().url)
    stream = Stream(tab)
    start(tab)
    tab.page.locator("#status", has_text="in front of the camera").wait_for()
    assert stream.frames == []  # nothing is asked yet
    tab.ask("green")
    wait_for_frames(tab, stream, 5)
    assert stream.questions[0] == {
        "expressions": ["green"], "threshold": 0.5, "format": "png", "newest": True,
    }  # fmt: skip
    picture = Image.open(BytesIO(stream.frames[-1]))
    assert picture.format == "JPEG"
    assert max(picture.size) == 640
    assert "frames/s" in tab.page.inner_text("#runs")
    assert tab.page.is_hidden("#save-coco")
    tab.ask("white")
    tab.slide("threshold", 0.2)
    tab.page.locator("#threshold").blur()
    count = len(stream.frames)
    wait_for_frames(tab, stream, count + 3)
    assert stream.questions[-1]["expressions"] == ["green", "white"]
    assert stream.questions[-1]["threshold"] == 0.2
    tab.page.click("#keep")
    tab.page.locator("#caption", has_text="camera.png").wait_for()
    assert tab.page.get_attribute("#camera", "aria-pressed") == "false"
    tab.page.click("#tries >> text=green")
    tab.page.locator("#finds li.found", has_text="green").wait_for()
    assert tab.page.is_visible("#save-coco")


def test_bad_and_dropped_frames_cost_no_more_than_themselves(
    serve: Callable[..., Running], visit: Callable[..., Visit]
) -> None:
    tab = visit(serve().url)
    stream = Stream(tab)
    stream.bad, stream.ignored = {1}, {3}
    start(tab, "green")
    wait_for_frames(tab, stream, 8)
    assert tab.trouble() == "Not a readable image It is cut."
    assert "left out" in tab.page.inner_text("#runs")


def test_end_of_the_stream_is_told_in_words(
    serve: Callable[..., Running], visit: Callable[..., Visit]
) -> None:
    tab = visit(serve().url)
    stream = Stream(tab)
    start(tab, "green")
    stream.end = (1012, "draining")
    assert "The service is stopping. It says: draining." in tab.trouble()
    assert tab.page.get_attribute("#camera", "aria-pressed") == "false"
    stream.end = None
    tab.page.click("#again")
    tab.page.locator("#camera[aria-pressed=true]").wait_for()
    assert stream.opened == 2
    tab.page.click("#tries >> text=green")  # offered again
    tab.page.locator("#finds li.found").wait_for()
    tab.page.click("#camera")
    tab.page.locator("#camera[aria-pressed=false]").wait_for()


def test_stream_that_cannot_be_opened_leaves_the_photo(
    serve: Callable[..., Running], visit: Callable[..., Visit], small_photo: bytes
) -> None:
    tab = visit(serve().url)
    tab.page.add_init_script(
        "window.WebSocket = class extends EventTarget {\n"
        "  constructor() { super(); setTimeout(() => this.dispatchEvent(new Event('error'))); }\n"
        "  close() {}\n"
        "}"
    )
    tab.page.reload()
    tab.choose(small_photo)
    tab.ask("the dog")
    tab.page.click("#camera")
    assert "The stream cannot be opened." in tab.trouble()
    assert tab.page.inner_text("#caption").startswith("photo.png")
    assert tab.page.locator("#finds li.found").count() == 1


def test_camera_that_is_not_allowed(
    serve: Callable[..., Running], visit: Callable[..., Visit]
) -> None:
    tab = visit(serve().url)
    tab.page.evaluate(
        "void (navigator.mediaDevices.getUserMedia = async () => {"
        " throw new DOMException('no', 'NotAllowedError'); })"
    )
    tab.page.click("#camera")
    assert "Allow it for this page" in tab.trouble()


def test_with_the_stream_of_the_service(
    serve: Callable[..., Running], visit: Callable[..., Visit]
) -> None:
    running = serve()
    tab = visit(running.url)
    start(tab, "green")
    tab.page.locator("#runs .of", has_text="frames/s").wait_for()
    background = tab.page.evaluate("document.querySelector('#picture').width")
    assert background == 960
    tab.slide("opacity", 1)
    painted = (np.abs(tab.canvas().astype(int) - (0, 114, 178)) < 8).all(axis=-1)
    # The camera of the browser shows green with a pie in it that grows and shrinks with its clock.
    assert painted.mean() > 0.01 and not painted.all()
    assert tab.page.is_hidden("#trouble")
    tab.page.click("#camera")
    tab.page.locator("#camera[aria-pressed=false]").wait_for()
