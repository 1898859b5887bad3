"""What goes wrong, told on the page in words."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable

from playwright.sync_api import Route

from tests.service.page.visits import Running, Visit, segment
from tests.waiting import wait_until


def test_file_that_is_no_picture(
    serve: Callable[..., Running], visit: Callable[..., Visit], small_photo: bytes
) -> None:
    running = serve(max_body_bytes=100_000)
    tab = visit(running.url)
    tab.choose(small_photo, "good.png")
    tab.choose(b"hello", "notes.txt", "text/plain")
    assert "not a picture" in tab.trouble()
    assert "notes.txt" in tab.trouble()
    assert tab.page.inner_text("#caption").startswith("good.png")  # it stays
    tab.page.click("#dismiss")
    tab.choose(bytes(200_000), "long.png")
    assert "takes at most 0.1 MB" in tab.trouble()
    assert running.service.metric("segvlm_requests_total", route="/segment", code="400") == 0


def test_refusal_of_the_service_is_told_in_its_words(
    serve: Callable[..., Running], visit: Callable[..., Visit], small_photo: bytes
) -> None:
    tab = visit(serve(max_pixels=1000).url)
    tab.choose(small_photo)
    tab.ask("the dog", state="failed")
    assert "SEGVLM_MAX_PIXELS" in tab.trouble()
    assert "not answered" in tab.page.inner_text("#finds .fact")
    tab.expect_fault("status of 413")


def test_full_queue_is_told_and_tried_again(
    serve: Callable[..., Running], visit: Callable[..., Visit], small_photo: bytes
) -> None:
    running = serve(max_queue=1)
    tab = visit(running.url)
    tab.choose(small_photo)
    running.service.backend.gate.clear()
    other = threading.Thread(target=segment, args=(running.url, small_photo, ["first"]))
    other.start()
    wait_until(lambda: running.service.engine.images == 1, "the other's place")
    tab.ask("the dog", state="failed")
    assert "too many images are waiting" in tab.trouble().lower()
    assert "try again in" in tab.trouble()
    tab.expect_fault("status of 503")
    running.service.backend.gate.set()
    other.join()
    tab.page.click("#again")
    tab.page.locator("#finds li.found").wait_for()
    assert tab.page.is_hidden("#trouble")


def problem(route: Route, status: int, detail: str, **headers: str) -> None:
    body = {"title": "Not now", "status": status, "detail": detail, "reason": "a_reason"}
    route.fulfill(
        status=status,
        body=json.dumps(body),
        headers={"Content-Type": "application/problem+json", **headers},
    )


def test_limit_of_a_key_and_a_lost_service(
    serve: Callable[..., Running], visit: Callable[..., Visit], small_photo: bytes
) -> None:
    tab = visit(serve().url)
    tab.choose(small_photo)
    tab.page.route(
        "**/segment", lambda route: problem(route, 429, "wait a while", **{"Retry-After": "7"})
    )
    tab.ask("the dog", state="failed")
    assert tab.trouble() == "Not now. Wait a while. You can try again in 7 s."
    tab.expect_fault("status of 429")
    tab.page.unroute("**/segment")
    tab.page.route("**/segment", lambda route: route.abort())
    tab.page.click("#again")
    tab.page.locator("#trouble", has_text="cannot be reached").wait_for()
    tab.expect_fault("ERR_FAILED")


def test_key_is_asked_for_sent_and_kept_in_the_tab_only(
    serve: Callable[..., Running], visit: Callable[..., Visit], small_photo: bytes
) -> None:
    tab = visit(serve().url)
    tab.choose(small_photo)

    def guard(route: Route) -> None:
        if route.request.headers.get("authorization") == "Bearer open sesame":
            route.continue_()
        else:
            problem(route, 401, "send a key")

    tab.page.route("**/segment", guard)
    tab.ask("the dog", state="failed")
    tab.expect_fault("status of 401")
    assert "Send a key." in tab.trouble()
    tab.page.fill("#key", "open sesame")  # visible now
    tab.page.click("#again")
    tab.page.locator("#finds li.found").wait_for()
    snippet = tab.page.inner_text("#snippet")
    assert "Bearer $SEGVLM_KEY" in snippet
    assert "sesame" not in snippet
    kept = tab.page.evaluate("[sessionStorage.length, localStorage.length, document.cookie]")
    assert kept == [1, 0, ""]
