"""Pages of other origins, and what every answer tells a browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from service.settings import SettingsError, load_settings

PAGE = "https://photos.example.org"


def preflight(service: Any, origin: str, header: str = "authorization") -> Any:
    return service.client.options(
        "/segment",
        headers={
            "Origin": origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": header,
        },
    )


@pytest.fixture
def shared(make_service: Callable[..., Any], keys: Any) -> Any:
    """A service that wants keys and lets pages of two origins call it."""
    return make_service(api_keys_file=keys.path, cors_origins=f"{PAGE}, http://localhost:3000")


def test_off_by_default(service: Any) -> None:
    response = service.client.get("/healthz", headers={"Origin": PAGE})
    assert not [name for name in response.headers if name.startswith("access-control")]
    assert preflight(service, PAGE).status_code == 405


@pytest.mark.parametrize("origin", [PAGE, "http://localhost:3000"])
def test_preflight_needs_no_key(origin: str, shared: Any) -> None:
    response = preflight(shared, origin, "authorization,x-request-timeout")
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == origin
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "x-request-timeout" in response.headers["access-control-allow-headers"]
    assert response.headers["x-request-id"]


def test_preflight_of_another_origin_is_refused(shared: Any) -> None:
    response = preflight(shared, "https://evil.example.org")
    assert response.status_code == 400
    assert "access-control-allow-origin" not in response.headers


def test_a_request_still_needs_its_key_and_a_page_can_read_why(shared: Any, keys: Any) -> None:
    refused = shared.client.get("/metrics", headers={"Origin": PAGE})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == PAGE
    exposed = set(refused.headers["access-control-expose-headers"].split(", "))
    assert {"X-Request-Id", "Retry-After", "Server-Timing", "RateLimit"} <= exposed
    headers = {"Origin": PAGE, "X-API-Key": keys.key["anna"]}
    assert shared.client.get("/metrics", headers=headers).status_code == 200


def test_an_options_request_that_is_no_preflight_needs_a_key(shared: Any) -> None:
    assert shared.client.options("/segment", headers={"Origin": PAGE}).status_code == 401


@pytest.mark.parametrize(
    "value", ["photos.example.org", f"{PAGE}/", "https://a.org/b", f"{PAGE},,", "https://A.org"]
)
def test_what_no_browser_sends_is_refused_at_the_start(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SEGVLM_CORS_ORIGINS", value)
    with pytest.raises(SettingsError) as caught:
        load_settings()
    (line,) = caught.value.faults
    assert line.startswith(f"SEGVLM_CORS_ORIGINS={value}: must be origins")


def test_every_answer_keeps_its_type(shared: Any) -> None:
    answers = {path: shared.client.get(path) for path in ("/healthz", "/metrics", "/nothing")}
    answers["preflight"] = preflight(shared, PAGE)
    assert {name: answer.headers["x-content-type-options"] for name, answer in answers.items()} == (
        dict.fromkeys(answers, "nosniff")
    )


def test_also_a_fault(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash() -> bytes:
        raise RuntimeError

    assert service.client
    monkeypatch.setattr(service.engine.metrics, "exposition", crash)
    answer = service.client.get("/metrics")
    assert answer.status_code == 500
    assert answer.headers["x-content-type-options"] == "nosniff"
