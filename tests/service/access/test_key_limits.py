"""What a key may use, by a clock of the test's own, and what its answers tell."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from service.api_keys import ApiKey
from service.errors import RateLimited
from service.key_limits import KeyUses

KEY = ApiKey("anna", b"", rate=0.5, burst=3, concurrent=None)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def refused(uses: KeyUses, key: ApiKey) -> str | None:
    """Retry-After if a request is refused, None if it is let in."""
    try:
        with uses.entered(key):
            return None
    except RateLimited as error:
        return error.headers["Retry-After"]


def test_a_burst_and_then_the_rate() -> None:
    clock = Clock()
    uses = KeyUses(clock)
    assert [refused(uses, KEY) for _ in range(4)] == [None, None, None, "2"]
    clock.now += 0.9
    assert refused(uses, KEY) == "2"  # 1.1 s, rounded up
    clock.now += 1.1
    assert [refused(uses, KEY), refused(uses, KEY)] == [None, "2"]
    clock.now += 1000
    assert [refused(uses, KEY) for _ in range(4)] == [None, None, None, "2"]


@pytest.mark.parametrize("rate", [0.001, 0.3, 0.7, 3.3, 7.0])
def test_who_waits_as_long_as_told_is_let_in(rate: float) -> None:
    clock = Clock()
    uses = KeyUses(clock)
    key = replace(KEY, rate=rate, burst=1)
    assert refused(uses, key) is None
    for _ in range(50):
        wait = refused(uses, key)
        assert wait is not None
        clock.now += 1 / rate  # the exact time, which is never longer than the header's
        assert 1 / rate <= int(wait) + 1e-6
        assert refused(uses, key) is None


def test_a_burst_is_the_rate_rounded_up() -> None:
    uses = KeyUses(Clock())
    key = replace(KEY, rate=1.5, burst=None)
    assert [refused(uses, key) for _ in range(3)] == [None, None, "1"]


def test_requests_at_a_time_are_given_back_also_by_faults() -> None:
    uses = KeyUses(Clock())
    key = replace(KEY, rate=None, burst=None, concurrent=1)
    with uses.entered(key):
        assert refused(uses, key) == "1"
        assert uses.of(key).headers()["RateLimit"] == '"concurrent";r=0'
    with pytest.raises(KeyError), uses.entered(key):
        raise KeyError
    assert refused(uses, key) is None


def test_a_refusal_uses_up_no_token() -> None:
    uses = KeyUses(Clock())
    key = replace(KEY, burst=2, concurrent=1)
    with uses.entered(key):
        assert [refused(uses, key) for _ in range(5)] == ["1"] * 5
    assert refused(uses, key) is None


def test_changed_limits_hold_at_once_and_what_runs_still_counts() -> None:
    uses = KeyUses(Clock())
    before = replace(KEY, rate=None, burst=None, concurrent=2)
    after = replace(before, concurrent=1)
    with uses.entered(before):
        assert refused(uses, before) is None
        assert refused(uses, after) == "1"
    assert refused(uses, after) is None


def test_what_began_under_the_old_limits_fills_no_new_bucket() -> None:
    uses = KeyUses(Clock())
    after = replace(KEY, burst=1)
    with uses.entered(KEY):
        use = uses.of(KEY)
        assert [refused(uses, after), refused(uses, after)] == [None, "2"]
        assert use.headers()["RateLimit"] == '"rate";r=0;t=2'
    assert refused(uses, after) == "2"


def test_keys_count_apart() -> None:
    uses = KeyUses(Clock())
    other = replace(KEY, name="ben")
    assert [refused(uses, KEY) for _ in range(4)][-1] == "2"
    assert refused(uses, other) is None


def test_headers_tell_the_policy_and_what_is_left() -> None:
    uses = KeyUses(Clock())
    key = replace(KEY, rate=5, burst=10, concurrent=4)
    with uses.entered(key):
        assert uses.of(key).headers() == {
            "RateLimit-Policy": '"rate";q=10;w=2, "concurrent";q=4;qu="concurrent-requests"',
            "RateLimit": '"rate";r=9;t=1, "concurrent";r=3',
        }
    assert KeyUses(Clock()).of(ApiKey("free", b"")).headers() == {}


# -- through the application ------------------------------------------------------------------


def test_answers_tell_what_is_left_and_then_429(
    make_service: Callable[..., Any], make_keys: Callable[..., Any]
) -> None:
    keys = make_keys(anna="rate=0.001 burst=2", ben="")
    service = make_service(api_keys_file=keys.path)
    anna, ben = ({"X-API-Key": keys.key[name]} for name in ("anna", "ben"))
    answers = [service.client.get("/metrics", headers=anna) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    left = [answer.headers["RateLimit"].split(";")[1] for answer in answers]
    assert left == ["r=1", "r=0", "r=0"]
    assert {answer.headers["RateLimit-Policy"] for answer in answers} == {'"rate";q=2;w=2000'}
    last = answers[-1]
    assert last.json()["reason"] == "rate_limited"
    assert 990 <= int(last.headers["Retry-After"]) <= 1000
    assert last.headers["RateLimit"].endswith(f";t={last.headers['Retry-After']}")
    assert service.metric("segvlm_rejected_total", reason="rate_limited") == 1
    assert service.metric("segvlm_requests_total", route="/metrics", code="429") == 1
    free = service.client.get("/metrics", headers=ben)
    assert free.status_code == 200 and "RateLimit" not in free.headers


def test_requests_at_a_time(
    make_service: Callable[..., Any], make_keys: Callable[..., Any], small_photo: bytes
) -> None:
    keys = make_keys(anna="concurrent=1")
    service = make_service(api_keys_file=keys.path)
    request = {
        "files": {"image": small_photo},
        "data": {"expression": "the dog"},
        "headers": {"X-API-Key": keys.key["anna"]},
    }
    assert service.client
    service.backend.gate.clear()
    statuses: list[int] = []

    def post() -> None:
        statuses.append(service.client.post("/segment", **request).status_code)

    first = threading.Thread(target=post)
    first.start()
    assert service.backend.entered.wait(60)
    post()
    service.backend.gate.set()
    first.join(60)
    post()
    assert statuses == [429, 200, 200]
