"""A browser, services on the fake backend behind real sockets, and tabs of the page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import httpx2 as httpx
import pytest
from playwright.sync_api import Browser

from benchmarks.browser import find_chromium, open_chromium
from tests.service.conftest import draw_photo
from tests.service.page.visits import Running, Visit

SIZE = (960, 600)  # the canvas shows a photo of this size pixel by pixel


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if find_chromium() is None:
        pytest.skip("no Chromium for the page's tests; on Debian: apt-get install chromium")
    with open_chromium() as opened:
        yield opened


@pytest.fixture
def serve(make_service: Callable[..., Any]) -> Iterator[Callable[..., Running]]:
    running: list[Running] = []

    def start(**options: Any) -> Running:
        running.append(Running(make_service(320, host="127.0.0.1", port=0, **options)))
        return running[-1]

    yield start
    for one in running:
        one.stop()


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """A factory of tabs. In the end none may have complained or asked another host."""
    visits: list[Visit] = []

    def open_page(url: str, **options: Any) -> Visit:
        visits.append(Visit(browser.new_context(**options), url))
        return visits[-1]

    yield open_page
    for one in visits:
        one.page.context.close()
    assert [one.faults for one in visits if one.faults] == []
    assert all(one.hosts == {httpx.URL(one.url).netloc.decode()} for one in visits)


@pytest.fixture(scope="module")
def drawing() -> Any:
    """A red rectangle and a blue ring on grey."""
    return draw_photo(*SIZE)
