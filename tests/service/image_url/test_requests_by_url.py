"""Requests that name an image instead of sending it: the same answer, limits and counts."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from service.pipeline import Pipeline
from service.server import Server
from tests.waiting import PATIENCE, wait_until

HOST = "images.example.org"


@pytest.fixture
def make_fetching(
    make_service: Callable[..., Any], make_fetcher: Callable[..., Any]
) -> Callable[..., Any]:
    """A factory: a service that fetches from the server of these tests."""

    def make(**settings: Any) -> Any:
        service = make_service(url_hosts=HOST, **settings)
        service.fetcher = make_fetcher()
        pipeline: Pipeline = service.app.state.pipeline
        pipeline.url_images = service.fetcher.images
        return service

    return make


@pytest.fixture
def fetching(make_fetching: Callable[..., Any]) -> Any:
    return make_fetching()


def ask(service: Any, path: str = "/photo.png", **headers: str) -> Any:
    document = {"image_url": service.fetcher.url(path), "expressions": ["red"]}
    return service.client.post("/segment", json=document, headers=headers)


def without_times(answer: Any) -> Any:
    assert answer.status_code == 200, answer.text
    return {name: value for name, value in answer.json().items() if name != "timings"}


def test_the_answer_is_that_of_the_sent_image(
    fetching: Any, server: Any, reply: Any, small_photo: bytes, caplog: Any
) -> None:
    server.answers["/photo.png"] = reply(small_photo)
    sent = fetching.client.post(
        "/segment", files={"image": small_photo}, data={"expression": "red"}
    )
    with caplog.at_level(logging.INFO):
        from_json = ask(fetching)
    form = {"image_url": (None, fetching.fetcher.url("/photo.png")), "expression": (None, "red")}
    from_form = fetching.client.post("/segment", files=form)
    assert without_times(from_json) == without_times(from_form) == without_times(sent)
    assert fetching.backend.images_encoded == 1  # kept by content, wherever it came from
    (line,) = [each.getMessage() for each in caplog.records if each.name == "segvlm.access"]
    assert "fetch=" in line


def test_a_picture_is_drawn_of_it(
    fetching: Any, server: Any, reply: Any, small_photo: bytes
) -> None:
    server.answers["/photo.png"] = reply(small_photo)
    document = {"image_url": fetching.fetcher.url("/photo.png"), "expressions": ["red"]}
    drawn = fetching.client.post("/segment?format=overlay", json=document)
    assert drawn.headers["content-type"] == "image/png"
    assert fetching.app.state.pipeline._budget.held == 0


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "either image"),
        ({"image": "AAAA", "image_url": "https://a.org/"}, "either image"),
        ({"image_url": ""}, "at least 1 character"),
        ({"image_url": 7}, "valid string"),
    ],
)
def test_one_image_is_sent_or_named(given: dict[str, Any], told: str, fetching: Any) -> None:
    answer = fetching.client.post("/segment", json={"expressions": ["red"], **given})
    assert answer.status_code == 422
    assert answer.json()["reason"] == "invalid_field" and told in answer.json()["detail"]


def test_in_a_form_too(fetching: Any, small_photo: bytes) -> None:
    both = fetching.client.post(
        "/segment",
        files={"image": small_photo},
        data={"image_url": "https://a.org/", "expression": "red"},
    )
    assert both.status_code == 422 and "2 were sent" in both.json()["detail"]


def test_off_by_default(service: Any) -> None:
    document = {"image_url": f"https://{HOST}/a.png", "expressions": ["red"]}
    answer = service.client.post("/segment", json=document)
    assert answer.status_code == 422
    assert answer.json()["reason"] == "url_refused"
    assert "fetches no images" in answer.json()["detail"]


def test_refusals_are_counted_once(fetching: Any, server: Any, reply: Any) -> None:
    server.answers["/photo.png"] = reply(status="404 Not Found")
    server.answers["/text"] = reply(b"no image")
    fetching.client.get("/healthz")
    unreachable, broken = ask(fetching), ask(fetching, "/text")
    refused = fetching.client.post(
        "/segment", json={"image_url": "http://169.254.169.254/", "expressions": ["red"]}
    )
    assert [answer.status_code for answer in (unreachable, broken, refused)] == [424, 400, 422]
    for reason in ("url_unreachable", "bad_image", "url_refused"):
        assert fetching.metric("segvlm_rejected_total", reason=reason) == 1
    assert fetching.metric("segvlm_admitted_images") == 0


def test_a_slow_host_costs_its_caller_and_no_thread(
    make_fetching: Callable[..., Any], server: Any, small_photo: bytes
) -> None:
    fetching = make_fetching(image_threads=1, max_queue=2)
    held = threading.Event()
    server.answers["/photo.png"] = lambda connection, _: held.wait(PATIENCE)
    assert fetching.client
    asked: list[Any] = []
    waiting = threading.Thread(target=lambda: asked.append(ask(fetching)), daemon=True)
    waiting.start()
    wait_until(lambda: server.asked, "the image to be asked for")
    assert fetching.metric("segvlm_admitted_images") == 1  # it has a place in the queue
    other = fetching.client.post(
        "/segment", files={"image": small_photo}, data={"expression": "red"}
    )
    assert other.status_code == 200
    held.set()
    waiting.join(PATIENCE)
    assert asked[0].status_code == 424


def test_the_requests_own_deadline_holds(fetching: Any, server: Any) -> None:
    held = threading.Event()
    server.answers["/photo.png"] = lambda connection, _: held.wait(PATIENCE)
    answer = ask(fetching, **{"X-Request-Timeout": "0.3"})
    held.set()
    assert answer.status_code == 504
    assert "within 0.3 s" in answer.json()["detail"]


def test_who_leaves_ends_the_fetching(
    make_service: Callable[..., Any], make_fetcher: Callable[..., Any], server: Any
) -> None:
    service = make_service(url_hosts=HOST, host="127.0.0.1", port=0)
    fetcher = make_fetcher()

    def trickle(connection: Any, _: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n")
        while True:
            connection.sendall(b"x")
            time.sleep(0.02)

    server.answers["/photo.png"] = trickle
    running = Server(service.settings, service.engine)
    app: Any = running.config.app
    app.state.pipeline.url_images = fetcher.images
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    try:
        wait_until(lambda: running.started and service.engine.ready, "the server")
        body = f'{{"image_url": "{fetcher.url("/photo.png")}", "expressions": ["red"]}}'.encode()
        address = running.servers[0].sockets[0].getsockname()
        with socket.create_connection(address) as client:
            client.sendall(
                b"POST /segment HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
            )
            wait_until(lambda: server.asked, "the image to be asked for")
        assert server.left.wait(PATIENCE)
        wait_until(lambda: service.metric("segvlm_admitted_images") == 0, "the place to be free")
        assert service.metric("segvlm_rejected_total", reason="disconnected") == 1
    finally:
        running.should_exit = True
        thread.join(PATIENCE)


def test_roboflow_and_label_studio(
    fetching: Any, server: Any, reply: Any, small_photo: bytes
) -> None:
    server.answers["/photo.png"] = reply(small_photo)
    url = fetching.fetcher.url("/photo.png")
    roboflow = {
        "image": {"type": "url", "value": url},
        "prompts": [{"type": "text", "text": "red"}],
    }
    answer = fetching.client.post("/sam3/concept_segment", json=roboflow)
    assert answer.status_code == 200, answer.text
    assert answer.json()["prompt_results"][0]["predictions"]
    label_config = "<View><Image name='i' value='$p'/><Brush name='b' toName='i'/></View>"
    label_studio = {
        "label_config": label_config,
        "tasks": [{"data": {"p": url}}, {"data": {"p": fetching.fetcher.url("/missing")}}],
        "params": {"context": {"result": [{"value": {"text": ["red"]}}]}},
    }
    server.answers["/missing"] = reply(status="404 Not Found")
    refused = fetching.client.post("/label-studio/predict", json=label_studio)
    assert refused.status_code == 424
    assert refused.json()["error"].startswith("tasks.1: its host answered with status 404")
    label_studio["tasks"] = label_studio["tasks"][:1]
    found = fetching.client.post("/label-studio/predict", json=label_studio)
    assert found.status_code == 200, found.text
    assert found.json()["results"][0]["result"]
