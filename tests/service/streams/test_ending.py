"""How streams end that nobody closes: a stop, an idle client, one that takes no answers."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx2 as httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.waiting import PATIENCE, wait_until


def test_stop_lets_streams_finish_what_they_have_begun_with(
    serve: Callable[..., Any], small_photo: bytes
) -> None:
    running = serve(drain_seconds=1)
    metric = running.service.metric
    idle, every = running.stream(expressions=["a"]), running.stream(expressions=["a"], newest=False)
    newest = running.stream(expressions=["b"])
    running.hold()
    newest.send(small_photo, small_photo)
    wait_until(lambda: running.frames().get("received") == 2, "one at the model, one to wait")
    every.send(small_photo, small_photo)
    wait_until(lambda: running.service.engine.images == 3, "two of the other stream")
    running.server.handle_exit(signal.SIGTERM, None)
    assert idle.closing() == (1012, "this instance is stopping; connect again")
    assert httpx.get(f"http://{running.host}/readyz", timeout=PATIENCE).status_code == 503
    with pytest.raises(InvalidStatus) as refused:
        running.stream(expressions=["late"])
    assert refused.value.response.status_code == 503
    assert refused.value.response.headers["Retry-After"] == "1"
    assert json.loads(refused.value.response.body)["reason"] == "draining"
    running.go_on()
    answers = [newest.receive(), newest.receive(), every.receive(), every.receive()]
    assert [(each["type"], each["frame"]) for each in answers] == [
        ("result", 0),
        ("error", 1),
        ("result", 0),
        ("result", 1),
    ]
    assert answers[1]["reason"] == "draining"
    assert newest.closing()[0] == every.closing()[0] == 1012
    running.thread.join(PATIENCE)
    assert not running.thread.is_alive()
    assert running.frames() == {"received": 4, "answered": 3, "draining": 1}
    assert metric("segvlm_streams_total", end="draining") == 3 + 1


def test_stop_waits_no_longer_than_its_limit(serve: Callable[..., Any], small_photo: bytes) -> None:
    running = serve(shutdown_timeout=1)
    stream = running.stream(expressions=["a"])
    running.hold()
    stream.send(small_photo)
    assert running.service.backend.entered.wait(PATIENCE)
    running.server.handle_exit(signal.SIGTERM, None)
    assert stream.closing()[0] == 1012
    running.go_on()
    running.thread.join(PATIENCE)
    assert not running.thread.is_alive()
    assert running.frames() == {"received": 1, "draining": 1}


def test_dead_model_ends_a_stream(serve: Callable[..., Any], small_photo: bytes) -> None:
    running = serve()
    stream = running.stream(expressions=["a"], newest=False)
    running.hold()
    stream.send(small_photo, small_photo)
    wait_until(lambda: running.service.engine.images == 2, "both to be launched")
    running.server.on_tick = lambda counter: _never(running.server)
    running.service.engine._batcher._queue.close("the device is gone")
    errors = [stream.receive() for _ in range(2)]
    assert [(each["frame"], each["reason"]) for each in errors] == [
        (0, "engine_stopped"),
        (1, "engine_stopped"),
    ]
    assert stream.closing()[0] == 1011
    running.wait_no_streams()
    assert running.service.metric("segvlm_streams_total", end="engine_stopped") == 1


async def _never(server: Any) -> bool:
    """Instead of leaving with the engine, which would close the stream, too."""
    return bool(server.should_exit)


def test_idle_stream_is_closed_and_a_busy_one_is_not(
    serve: Callable[..., Any], small_photo: bytes
) -> None:
    running = serve(stream_idle_timeout=1.5)
    busy = running.stream(expressions=["a"])
    running.hold()
    busy.send(small_photo)
    assert running.service.backend.entered.wait(PATIENCE)
    idle = running.stream(expressions=["a"])
    code, reason = idle.closing()
    assert code == 1008
    assert reason == "nothing came for 1.5 s (SEGVLM_STREAM_IDLE_TIMEOUT)"
    running.go_on()
    assert busy.receive()["type"] == "result"
    assert busy.closing()[0] == 1008
    assert running.service.metric("segvlm_streams_total", end="idle") == 2


def test_client_that_takes_no_answers_is_let_go_and_holds_up_nobody(
    serve: Callable[..., Any], small_photo: bytes, photo: Any
) -> None:
    running = serve(stream_idle_timeout=4.0)
    connections = running.server.server_state.connections
    deaf = running.deaf_stream(expressions=["a"] * 32, include_probability=True, newest=False)
    (connection,) = connections
    connection.close_timeout = 0.2  # ten seconds is uvicorn's own
    sending = threading.Thread(target=_send_until_closed, args=(deaf, photo.encoded("JPEG")))
    sending.start()
    swift = running.stream(expressions=["a"])
    asked, longest = 0, 0
    while not running.service.metric("segvlm_streams_total", end="slow_reader"):
        assert swift.ask(small_photo)["type"] == "result"
        longest = max(longest, connection.transport.get_write_buffer_size())
        assert running.service.engine.images <= 3
        assert running.streams.buffered.held < 4 * 100_000
        asked += 1
    assert asked > 3
    # uvicorn's mark for writing no more, and one answer beyond it.
    assert 0 < longest < 64 * 1024 + 1_000_000
    wait_until(lambda: connection not in connections, "its abortion")
    sending.join(PATIENCE)
    counted = running.frames()
    assert counted["disconnected"] == 2
    assert counted["received"] == counted["answered"] + 2


def _send_until_closed(stream: Any, image: bytes) -> None:
    with suppress(ConnectionClosed):
        while True:
            stream.send(image)
