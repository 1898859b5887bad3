"""Who is let in, and what becomes of the others."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import Message, Receive, Scope, Send

from service.access import OPEN_PATHS, Access
from service.api_keys import KeyFile
from service.problems import problem_response


def post(service: Any, image: bytes, **headers: str) -> Any:
    return service.client.post(
        "/segment", files={"image": image}, data={"expression": "the dog"}, headers=headers
    )


def test_without_a_file_everybody_is_let_in(service: Any, small_photo: bytes) -> None:
    assert post(service, small_photo).status_code == 200
    assert service.client.get("/metrics").status_code == 200


@pytest.mark.parametrize(
    ("header", "value"),
    [("Authorization", "Bearer {}"), ("authorization", "bearer  {}"), ("X-API-Key", "{}")],
)
def test_a_key_lets_in(
    header: str, value: str, guarded: Any, keys: Any, small_photo: bytes
) -> None:
    response = post(guarded, small_photo, **{header: value.format(keys.key["ben"])})
    assert response.status_code == 200


def basic(credentials: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(credentials.encode()).decode()}


@pytest.mark.parametrize("user", ["", "anybody", "ü?>~"])
def test_a_key_lets_in_as_the_password_of_any_user(user: str, guarded: Any, keys: Any) -> None:
    assert guarded.client.get("/metrics", headers=basic(f"{user}:{keys.key['ben']}")).is_success
    as_user = basic(f"{keys.key['ben']}:")
    assert guarded.client.get("/metrics", headers=as_user).status_code == 401
    without_colon = basic(keys.key["ben"])
    assert guarded.client.get("/metrics", headers=without_colon).status_code == 401


@pytest.mark.parametrize(
    ("headers", "told"),
    [
        ({}, "brings none"),
        ({"Authorization": "Bearer wrong"}, "is not known"),
        ({"Authorization": "Bearer "}, "is not known"),
        ({"Authorization": "Basic YTpi"}, "is not known"),
        ({"Authorization": "Basic %%%"}, "is not known"),
        ({"Authorization": "Basic /w=="}, "is not known"),  # no UTF-8
        ({"Authorization": "Digest YTpi"}, "brings none"),
        ({"X-API-Key": "wrong"}, "is not known"),
        ({"X-API-Key": "\xe9\xff".encode("latin-1")}, "is not known"),
    ],
)
def test_others_get_a_401_that_says_what_to_send(
    headers: dict[str, Any], told: str, guarded: Any, small_photo: bytes
) -> None:
    response = post(guarded, small_photo, **headers)
    assert response.status_code == 401
    assert response.headers["www-authenticate"] == "Bearer"
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["reason"] == "unauthorized" and told in problem["detail"]
    assert "Authorization: Bearer" in problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"]


def test_a_refusal_is_counted_once_for_its_route(guarded: Any, small_photo: bytes) -> None:
    assert guarded.client
    received = guarded.metric("segvlm_received_total")
    post(guarded, small_photo)
    guarded.client.get("/nothing")
    assert guarded.metric("segvlm_rejected_total", reason="unauthorized") == 2
    assert guarded.metric("segvlm_requests_total", route="/segment", code="401") == 1
    assert guarded.metric("segvlm_requests_total", route="unmatched", code="401") == 1
    assert guarded.metric("segvlm_received_total") == received + 2


@pytest.mark.parametrize("path", ["/metrics", "/docs", "/openapi.json", "/segment", "/nothing"])
def test_the_rest_needs_a_key(path: str, guarded: Any) -> None:
    assert guarded.client.get(path).status_code == 401


@pytest.mark.parametrize("path", [*sorted(OPEN_PATHS), "/static/x.js"])
def test_probes_and_the_page_need_none(path: str, guarded: Any) -> None:
    assert guarded.client.get(path).status_code != 401
    assert guarded.client.head(path).status_code != 401
    assert guarded.client.post(path).status_code == 401


@pytest.mark.parametrize("path", ["/static/../metrics", "/static/%2e%2e/metrics"])
def test_no_detour_leads_past_the_key(path: str, guarded: Any) -> None:
    response = guarded.client.get(path)
    assert response.status_code in (401, 404)
    assert "segvlm_" not in response.text


def test_the_log_has_the_name_and_never_the_key(
    guarded: Any, keys: Any, small_photo: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    assert guarded.client
    with caplog.at_level(logging.INFO):
        post(guarded, small_photo, **{"X-API-Key": keys.key["anna"]})
        post(guarded, small_photo, **{"X-API-Key": "my-secret"})
    accepted, refused = (each for each in caplog.records if each.name == "segvlm.access")
    assert accepted.key == "anna" and accepted.message.endswith(" key=anna")  # type: ignore[attr-defined]
    assert refused.key is None and "key=" not in refused.message  # type: ignore[attr-defined]
    everything = caplog.text + json.dumps([vars(each) for each in caplog.records], default=str)
    assert keys.key["anna"] not in everything and "my-secret" not in everything


# -- below the framework ----------------------------------------------------------------------


async def nothing_inside(scope: Scope, receive: Receive, send: Send) -> None:
    """The application, which accepts a WebSocket and takes no request."""
    assert scope["type"] == "websocket"
    await send({"type": "websocket.accept"})


def call(keys: Any, scope: Scope) -> list[Message]:
    """What the middleware sends by itself, or `nothing_inside` does."""
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("the body is read before the key")

    async def send(message: Message) -> None:
        sent.append(message)

    access = Access(nothing_inside, KeyFile(keys.path), problem_response, [])
    asyncio.run(access(scope, receive, send))
    return sent


def websocket(keys: Any, *subprotocols: str, **scope: Any) -> Scope:
    return {
        "type": "websocket",
        "path": "/stream",
        "headers": [],
        "subprotocols": list(subprotocols),
        **scope,
    }


def subprotocol(key: str) -> str:
    return "segvlm.key." + base64.urlsafe_b64encode(key.encode()).decode().rstrip("=")


def test_refuses_before_it_reads_the_body(keys: Any) -> None:
    start, body = call(keys, {"type": "http", "method": "POST", "path": "/segment", "headers": []})
    assert start["status"] == 401
    assert json.loads(body["body"])["reason"] == "unauthorized"


def test_websocket_brings_its_key_as_a_subprotocol_or_a_header(keys: Any) -> None:
    key = keys.key["anna"]
    scope = websocket(keys, "segvlm.v1", subprotocol(key))
    assert call(keys, scope) == [{"type": "websocket.accept"}]
    assert scope["state"]["key"] == "anna"
    scope = websocket(keys, headers=[(b"authorization", f"Bearer {key}".encode())])
    assert call(keys, scope) == [{"type": "websocket.accept"}]


@pytest.mark.parametrize(
    "offered", [(), ("segvlm.v1",), (subprotocol("x"),), ("segvlm.key.%",), ("segvlm.key.gIA",)]
)
def test_websocket_is_refused_before_it_is_accepted(offered: tuple[str, ...], keys: Any) -> None:
    (close,) = call(keys, websocket(keys, *offered))
    assert (close["type"], close["code"]) == ("websocket.close", 1008)
    start, _ = call(keys, websocket(keys, *offered, extensions={"websocket.http.response": {}}))
    assert (start["type"], start["status"]) == ("websocket.http.response.start", 401)


def test_a_websocket_on_an_open_path_is_not_open(keys: Any) -> None:
    (close,) = call(keys, websocket(keys, path="/"))
    assert close["code"] == 1008


def test_websocket_refusal_through_the_whole_application(
    guarded: Any, make_keys: Callable[..., Any]
) -> None:
    client: TestClient = guarded.client
    with pytest.raises(WebSocketDenialResponse) as caught, client.websocket_connect("/stream"):
        pass
    assert caught.value.status_code == 401
