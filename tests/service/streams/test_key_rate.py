"""Frames count against their API key's rate: they wait for a turn, and the client hears of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.api_keys import ApiKey, make_key
from service.errors import RateLimited
from service.frame_allowance import FrameAllowance
from service.key_limits import KeyUse
from service.metrics import ANONYMOUS, Metrics
from tests.waiting import wait_until


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def allowance(use: KeyUse | None, clock: Clock, longest: float = 30.0) -> FrameAllowance:
    return FrameAllowance(use, Metrics(), longest, clock)


def test_frames_begin_in_turn_and_streams_of_a_key_one_after_the_other() -> None:
    clock = Clock()
    use = KeyUse(ApiKey("anna", b"", rate=2.0, burst=1), clock)
    one, other = allowance(use, clock), allowance(use, clock)
    assert one.wait() == 0.0 and one.begin(clock.now) is None
    assert one.wait() == one.wait() == pytest.approx(0.5)  # asked again, it is the same turn
    assert other.wait() == pytest.approx(1.0)
    clock.now += 0.5
    assert one.wait() == 0.0 and one.begin(50.2) == pytest.approx(0.3)
    assert one.wait() == pytest.approx(1.0)  # behind the other
    assert other.wait() == pytest.approx(0.5)
    assert use.headers()["RateLimit"] == '"rate";r=0;t=2'


def test_turn_that_is_given_up_goes_to_somebody_else() -> None:
    clock = Clock()
    use = KeyUse(ApiKey("anna", b"", rate=0.5, burst=1), clock)
    stream = allowance(use, clock)
    use.enter()
    assert stream.wait() == pytest.approx(2.0)
    stream.give_up()
    stream.give_up()  # once is enough
    clock.now += 2.0
    use.enter()
    with pytest.raises(RateLimited):
        use.enter()


def test_turn_that_is_too_far_away_is_refused_and_costs_nothing() -> None:
    clock = Clock()
    use = KeyUse(ApiKey("anna", b"", rate=0.1, burst=1), clock)
    stream = allowance(use, clock, longest=9.0)
    use.enter()
    for _ in range(3):
        with pytest.raises(RateLimited) as caught:
            stream.wait()
        assert caught.value.headers["Retry-After"] == "10"
    clock.now += 1.0
    assert stream.wait() == pytest.approx(9.0)


@pytest.mark.parametrize("use", [None, KeyUse(ApiKey("free", b""), Clock())])
def test_without_a_rate_nothing_waits(use: KeyUse | None) -> None:
    stream = allowance(use, Clock())
    assert {stream.wait() + (stream.begin(0.0) or 0.0) for _ in range(1000)} == {0.0}
    stream.give_up()


# -- over the wire ----------------------------------------------------------------------------


@pytest.fixture
def serve_anna(serve: Callable[..., Any], tmp_path: Path) -> Callable[[str], Any]:
    """A factory of services that know anna, with the given limits, and of the key's header."""

    def start(limits: str, **options: Any) -> Any:
        key, line = make_key("anna")
        (tmp_path / "keys").write_text(f"{line} {limits}")
        running = serve(api_keys_file=tmp_path / "keys", **options)
        running.header = {"additional_headers": {"X-API-Key": key}}
        return running

    return start


def test_every_frame_waits_for_its_turn(serve_anna: Callable[..., Any], small_photo: bytes) -> None:
    running = serve_anna("rate=4 burst=2")
    begun = time.monotonic()
    stream = running.stream(running.header, expressions=["a"], newest=False)
    stream.send(*[small_photo] * 5)
    answers = [stream.receive() for _ in range(5)]
    assert time.monotonic() - begun >= (1 + 5 - 2) / 4  # opening the stream cost one as well
    assert [(each["frame"], each["dropped"]) for each in answers] == [(n, 0) for n in range(5)]
    assert any(each["limited"] for each in answers)
    assert running.frames() == {"received": 5, "answered": 5}
    stream.close()
    running.wait_no_streams()
    counted = {
        use: running.service.metric("segvlm_key_uses_total", key="anna", use=use)
        for use in ("stream", "frame")
    }
    assert counted == {"stream": 1, "frame": 5}


def test_of_a_camera_the_newest_frame_gets_the_turn(
    serve_anna: Callable[..., Any], small_photo: bytes
) -> None:
    running = serve_anna("rate=0.5 burst=2")
    stream = running.stream(running.header, expressions=["a"])
    assert stream.ask(small_photo)["limited"] is False
    stream.send(*[small_photo] * 6)
    last = stream.receive()
    assert (last["frame"], last["dropped"], last["limited"]) == (6, 5, True)
    assert running.frames() == {"received": 7, "answered": 2, "dropped": 5}
    lag = running.service.metric("segvlm_frame_seconds_sum")
    assert lag < 1, "what its key's rate held it back is no lag of the service's"


def test_waiting_is_not_taken_off_a_frames_time(
    serve_anna: Callable[..., Any], small_photo: bytes
) -> None:
    running = serve_anna("rate=1 burst=2", timeout=1.5)
    stream = running.stream(running.header, expressions=["a"], newest=False)
    stream.send(*[small_photo] * 3)  # two are in line at a time: the last waits for two turns
    assert [stream.receive()["type"] for _ in range(3)] == ["result"] * 3


def test_turn_after_the_frames_time_is_an_error_and_not_the_end(
    serve_anna: Callable[..., Any], small_photo: bytes
) -> None:
    running = serve_anna("rate=0.01 burst=2")
    stream = running.stream(running.header, expressions=["a"])
    assert stream.ask(small_photo)["type"] == "result"
    for number in (1, 2):
        refused = stream.ask(small_photo)
        assert (refused["type"], refused["frame"]) == ("error", number)
        assert (refused["reason"], refused["status"]) == ("rate_limited", 429)
        assert 90 <= refused["retry_after"] <= 100
    assert stream.configure(expressions=["b"])["type"] == "ready"
    assert running.frames() == {"received": 3, "answered": 1, "rate_limited": 2}
    metric = running.service.metric
    assert metric("segvlm_key_refusals_total", key="anna", use="frame") == 2
    assert metric("segvlm_key_uses_total", key="anna", use="frame") == 1


def test_stream_that_ends_gives_its_turn_back(
    serve_anna: Callable[..., Any], small_photo: bytes
) -> None:
    running = serve_anna("rate=0.1 burst=2")
    stream = running.stream(running.header, expressions=["a"])
    stream.ask(small_photo)
    stream.send(small_photo)
    wait_until(lambda: running.frames()["received"] == 2, "the second frame")
    stream.close()
    running.wait_no_streams()
    assert running.frames() == {"received": 2, "answered": 1, "disconnected": 1}
    assert running.service.metric("segvlm_key_uses_total", key="anna", use="frame") == 1


def test_frames_of_nobody_are_counted_as_anonymous(
    serve: Callable[..., Any], small_photo: bytes
) -> None:
    running = serve()
    assert running.stream(expressions=["a"]).ask(small_photo)["limited"] is False
    assert running.service.metric("segvlm_key_uses_total", key=ANONYMOUS, use="frame") == 1
