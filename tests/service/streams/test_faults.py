"""What goes wrong in a stream costs what it must and nothing else."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest

from service.errors import problem_kinds
from tests.waiting import PATIENCE, wait_until


@pytest.mark.parametrize(
    ("bad", "reason"),
    [(b"no image", "bad_image"), (b"", "bad_image"), ("cut", "bad_image"), ("huge", "too_large")],
)
def test_bad_frame_costs_that_frame_only(
    serve: Callable[..., Any], small_photo: bytes, photo: Any, bad: Any, reason: str
) -> None:
    running = serve(max_pixels=10_000)
    image = {"cut": small_photo[:-40], "huge": photo.encoded()}.get(bad, bad)
    stream = running.stream(expressions=["a"], newest=False)
    stream.send(small_photo, image, small_photo)
    before, error, after = (stream.receive() for _ in range(3))
    assert (before["type"], before["frame"]) == (after["type"], after["frame"] - 2) == ("result", 0)
    assert (error["type"], error["frame"], error["reason"]) == ("error", 1, reason)
    kinds = {kind.reason: kind for kind in problem_kinds()}
    assert (error["status"], error["title"]) == (kinds[reason].status, kinds[reason].title)
    assert error["request_id"] == stream.socket.response.headers["X-Request-Id"]
    assert running.frames() == {"received": 3, "answered": 2, reason: 1}


def test_frame_on_which_the_model_fails(serve: Callable[..., Any], small_photo: bytes) -> None:
    running = serve()
    stream = running.stream(expressions=["poisoned"])
    backend = running.service.backend
    tokens = running.service.engine.tokenize(["poisoned"])[0].tokens
    backend.poison = int(tokens[1])
    assert stream.ask(small_photo)["reason"] == "inference"
    assert stream.configure(expressions=["wholesome"])["type"] == "ready"
    assert stream.ask(small_photo)["frame"] == 1
    assert running.frames() == {"received": 2, "answered": 1, "inference": 1}


@pytest.mark.parametrize(
    ("text", "reason", "told"),
    [
        ("garbage", "malformed_body", "not valid JSON"),
        ("[]", "invalid_field", "body"),
        ("{}", "invalid_field", "expressions"),
        ('{"expressions": []}', "invalid_field", "expressions"),
        ('{"expressions": [" "]}', "invalid_field", "expressions.0: empty"),
        ('{"expressions": ["a"], "format": "overlay"}', "invalid_field", "format"),
        ('{"expressions": ["a"], "threshold": 2}', "invalid_field", "threshold"),
        ('{"expressions": ["a"], "fps": 2}', "invalid_field", "fps"),
        (json.dumps({"expressions": ["a"] * 33}), "invalid_field", "at most 32"),
        (json.dumps({"expressions": ["a" * 300_000]}), "too_large", "longer than"),
    ],
)
def test_bad_configuration_leaves_the_one_before(
    serve: Callable[..., Any], small_photo: bytes, text: str, reason: str, told: str
) -> None:
    stream = serve().stream(expressions=["before"])
    stream.socket.send(text)
    error = stream.receive()
    assert (error["type"], error["frame"], error["reason"]) == ("error", None, reason)
    assert told in error["detail"]
    assert stream.ask(small_photo)["results"][0]["expression"] == "before"


def test_frame_before_any_configuration(serve: Callable[..., Any], small_photo: bytes) -> None:
    running = serve()
    stream = running.stream()
    error = stream.ask(small_photo)
    assert (error["frame"], error["reason"]) == (0, "invalid_field")
    assert '{"expressions": ["the dog"]}' in error["detail"]
    assert stream.configure(expressions=["a"])["type"] == "ready"
    assert stream.ask(small_photo)["frame"] == 1


def test_full_queue_costs_a_frame_and_says_when_to_come_back(
    serve: Callable[..., Any], small_photo: bytes
) -> None:
    running = serve(max_queue=1)
    stream = running.stream(expressions=["a"], newest=False)
    with running.service.engine.admit():
        error = stream.ask(small_photo)
    assert (error["status"], error["reason"]) == (503, "queue_full")
    assert error["retry_after"] >= 1
    assert stream.ask(small_photo)["type"] == "result"


def test_frames_share_the_limit_of_buffered_bytes_with_requests(
    serve: Callable[..., Any], small_photo: bytes
) -> None:
    size = len(small_photo)
    running = serve(max_body_bytes=2 * size, max_buffered_bytes=int(2.5 * size))
    stream = running.stream(expressions=["a"])
    running.hold()
    stream.send(small_photo)
    assert running.service.backend.entered.wait(PATIENCE)
    stream.send(small_photo, small_photo)
    wait_until(lambda: running.frames().get("received") == 3, "three frames")
    assert running.streams.buffered.held == 2 * size
    running.go_on()
    answers = [stream.receive() for _ in range(3)]
    assert [each.get("reason", each["type"]) for each in answers] == [
        "result",
        "result",
        "queue_full",
    ]


def test_message_that_is_too_large_closes_with_1009(
    serve: Callable[..., Any], small_photo: bytes
) -> None:
    """The client gets to read the code although it sends on."""
    running = serve(max_body_bytes=100_000)
    stream = running.stream(expressions=["a"])
    assert stream.ask(small_photo)["type"] == "result"
    stream.socket.send(bytes(30_000_000))
    assert stream.closing()[0] == 1009
    running.wait_no_streams()
    assert running.service.metric("segvlm_streams_total", end="too_large") == 1


def test_client_that_leaves_takes_its_frames_along(
    serve: Callable[..., Any], small_photo: bytes
) -> None:
    """What the model had not begun with is never run."""
    running = serve(timeout=300)  # so that not its deadline frees the place
    backend, metric = running.service.backend, running.service.metric
    stream = running.stream(expressions=["a"], newest=False)
    running.hold()
    stream.send(small_photo)
    assert backend.entered.wait(PATIENCE)
    stream.send(small_photo)
    wait_until(lambda: metric("segvlm_queue_depth") == 1, "the second to queue")
    stream.close()
    wait_until(lambda: metric("segvlm_queue_depth") == 0, "the leaving to be seen")
    running.wait_no_streams()
    running.go_on()
    assert running.stream(expressions=["b"]).ask(small_photo)["type"] == "result"
    assert backend.batches == [1, 1]
    assert running.frames() == {"received": 3, "answered": 1, "disconnected": 2}
    assert metric("segvlm_streams_total", end="closed") == 1


def test_client_that_vanishes_in_the_middle_of_a_frame(
    serve: Callable[..., Any], small_photo: bytes
) -> None:
    running = serve()
    stream = running.stream(expressions=["a"])
    raw = stream.socket.socket
    raw.sendall(b"\x82\xfe\xff\xff" + b"mask" + bytes(1000))  # 65,535 bytes were announced
    raw.shutdown(socket.SHUT_RDWR)
    running.wait_no_streams()
    assert running.frames() == {}
    assert running.service.metric("segvlm_streams_total", end="closed") == 1
    assert running.stream(expressions=["a"]).ask(small_photo)["type"] == "result"


def test_bytes_that_are_no_websocket_frame(serve: Callable[..., Any], small_photo: bytes) -> None:
    running = serve()
    stream = running.stream(expressions=["a"])
    stream.socket.socket.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert stream.closing()[0] == 1002
    running.wait_no_streams()
    assert running.service.metric("segvlm_streams_total", end="bad_message") == 1


def test_fault_of_ours_closes_with_1011(
    serve: Callable[..., Any], small_photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = serve()
    stream = running.stream(expressions=["a"])
    monkeypatch.setattr("service.stream_session.result_message", lambda *_: 1 / 0)
    stream.send(small_photo)
    assert stream.closing()[0] == 1011
    running.wait_no_streams()
    assert running.frames() == {"received": 1, "internal": 1}
    assert running.service.metric("segvlm_streams_total", end="internal") == 1
