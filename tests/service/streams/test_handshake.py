"""Who may open a stream, how many there may be, and what is told of their end."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from typing import Any

import httpx2 as httpx
import pytest
from websockets.exceptions import InvalidStatus

from service.origins import origin_allowed
from tests.waiting import PATIENCE, wait_until


@pytest.mark.parametrize(
    ("origin", "allowed", "may"),
    [
        (None, (), True),
        ("http://seg.example", (), True),
        ("https://SEG.example", (), True),
        ("https://seg.example:8443", (), False),
        ("https://evil.example", (), False),
        ("https://seg.example.evil.example", (), False),
        ("null", (), False),
        ("", (), False),
        ("https://friend.example", ("https://friend.example",), True),
        ("http://friend.example", ("https://friend.example",), False),
        ("https://evil.example", ("*",), True),
    ],
)
def test_pages_of_this_host_and_those_allowed(
    origin: str | None, allowed: tuple[str, ...], may: bool
) -> None:
    assert origin_allowed(origin, "seg.example", allowed) is may


def test_page_without_a_host_to_compare_is_foreign() -> None:
    assert not origin_allowed("null", "")


def test_page_of_another_site_is_refused(serve: Callable[..., Any]) -> None:
    running = serve()
    with pytest.raises(InvalidStatus) as refused:
        running.stream({"origin": "https://evil.example"})
    assert refused.value.response.status_code == 403
    assert json.loads(refused.value.response.body)["reason"] == "foreign_origin"
    assert running.service.metric("segvlm_streams_total", end="foreign_origin") == 1
    own = running.stream({"origin": f"http://{running.host}"}, expressions=["a"])
    assert own.socket.response.status_code == 101


def test_subprotocol_is_agreed_on_and_a_key_is_not_sent_back(serve: Callable[..., Any]) -> None:
    running = serve()
    stream = running.stream({"subprotocols": ["segvlm.key.c2VjcmV0", "segvlm.v1"]})
    assert stream.socket.subprotocol == "segvlm.v1"
    assert running.stream().socket.subprotocol is None


def test_images_are_not_compressed_again(serve: Callable[..., Any]) -> None:
    stream = serve().stream({"compression": "deflate"})
    assert "Sec-WebSocket-Extensions" not in stream.socket.response.headers


def test_one_stream_too_many(serve: Callable[..., Any], small_photo: bytes) -> None:
    running = serve(max_streams=2)
    open_ones = [running.stream(expressions=["a"]) for _ in range(2)]
    assert running.service.metric("segvlm_streams_open") == 2
    refused = running.stream()
    error = refused.receive()
    assert (error["type"], error["frame"], error["reason"]) == ("error", None, "streams_full")
    assert refused.closing() == (1008, "Too many streams are open")
    assert all(stream.ask(small_photo)["type"] == "result" for stream in open_ones)
    open_ones[0].close()
    wait_until(lambda: running.service.metric("segvlm_streams_open") == 1, "a place")
    assert running.stream(expressions=["a"]).ask(small_photo)["type"] == "result"
    assert running.service.metric("segvlm_streams_total", end="streams_full") == 1


def test_streams_can_be_turned_off(serve: Callable[..., Any]) -> None:
    assert serve(max_streams=0).stream().closing()[0] == 1008


def test_plain_request_is_told_to_upgrade(serve: Callable[..., Any]) -> None:
    running = serve()
    answer = httpx.get(f"http://{running.host}/stream", timeout=PATIENCE)
    assert answer.status_code == 426
    assert answer.headers["upgrade"] == "websocket"
    assert answer.headers["connection"].lower() == "upgrade"
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    assert (problem["status"], problem["reason"]) == (426, "upgrade_required")
    assert "WebSocket client" in problem["detail"] and "proxy" in problem["detail"]
    metric = running.service.metric
    assert metric("segvlm_rejected_total", reason="upgrade_required") == 1
    assert metric("segvlm_requests_total", route="/stream", code="426") == 1
    assert (
        running.service.engine.metrics.registry.get_sample_value(
            "segvlm_requests_total", {"route": "/stream", "code": "200"}
        )
        is None
    )
    assert metric("segvlm_streams_total", end="closed") == 0
    assert httpx.post(f"http://{running.host}/stream", timeout=PATIENCE).status_code == 405
    assert running.stream(expressions=["a"]).socket.response.status_code == 101


def test_path_without_a_stream(serve: Callable[..., Any]) -> None:
    running = serve()
    with pytest.raises(InvalidStatus) as refused:
        running.stream(path="/segment")
    assert refused.value.response.status_code == 403
    assert running.service.metric("segvlm_streams_total", end="refused") == 1


def test_stream_has_one_line_in_the_log(
    serve: Callable[..., Any], small_photo: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    running = serve(access_log=True)
    with caplog.at_level(logging.INFO, "segvlm.access"):
        stream = running.stream({"additional_headers": {"X-Request-Id": "cam"}}, expressions=["a"])
        assert stream.ask(small_photo)["type"] == "result"
        assert not caplog.records
        stream.close()
        wait_until(lambda: caplog.records, "the line")
    (line,) = caplog.records
    assert line.getMessage().startswith(
        "GET /stream 101 received=1 answered=1 dropped=0 failed=0 ms: total="
    )
    assert line.__dict__["frames"] == {"received": 1, "answered": 1, "dropped": 0, "failed": 0}
    assert (line.__dict__["route"], line.__dict__["reason"]) == ("/stream", None)


def test_streams_are_no_requests(serve: Callable[..., Any], small_photo: bytes) -> None:
    """Hours of a stream would make nonsense of what is known of requests."""
    running = serve()
    stream = running.stream(expressions=["a"])
    stream.ask(small_photo)
    stream.close()
    running.wait_no_streams()
    metric = running.service.metric
    wait_until(lambda: metric("segvlm_streams_total", end="closed") == 1, "its end")
    assert metric("segvlm_received_total") == metric("segvlm_inflight_requests") == 0
    assert metric("segvlm_frame_seconds_count") == 1
    assert httpx.get(f"http://{running.host}/readyz", timeout=PATIENCE).status_code == 200
