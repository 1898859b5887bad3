"""The log names each request once, in lines that people or programs can read."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.request_log import configure_log
from service.settings import Settings


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[[str], Callable[[], list[str]]]]:
    """Configure the log in a form; then its lines are what the returned function gives."""
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # the client's own
    root = logging.getLogger()
    before = root.handlers[:], root.level

    def configure(form: str) -> Callable[[], list[str]]:
        configure_log(Settings(log_format=form))
        return lambda: capsys.readouterr().err.splitlines()

    yield configure
    root.handlers[:], level = before
    root.setLevel(level)


def post(service: Any, image: bytes, **headers: str) -> Any:
    return service.client.post(
        "/segment", files={"image": image}, data={"expression": "the dog"}, headers=headers
    )


def test_json_line_of_a_request_has_everything(
    make_service: Callable[..., Any], small_photo: bytes, log: Any
) -> None:
    service = make_service()
    assert service.client
    lines = log("json")
    response = post(service, small_photo, **{"X-Request-Id": "abc-1"})
    assert response.status_code == 200
    (line,) = lines()
    entry = json.loads(line)
    told = {name: entry[name] for name in ("level", "logger", "request_id", "method", "path")}
    assert told == {
        "level": "INFO",
        "logger": "segvlm.access",
        "request_id": "abc-1",
        "method": "POST",
        "path": "/segment",
    }
    assert (entry["route"], entry["status"], entry["reason"]) == ("/segment", 200, None)
    stages = {"parse", "decode", "preprocess", "queue", "inference", "postprocess", "total"}
    assert set(entry["milliseconds"]) == stages
    rest = sum(entry["milliseconds"].values()) - entry["milliseconds"]["total"]
    assert 0 < rest <= entry["milliseconds"]["total"]
    assert entry["time"].endswith("+00:00")


def test_refused_request_says_why(make_service: Callable[..., Any], log: Any) -> None:
    service = make_service()
    assert service.client
    lines = log("json")
    response = post(service, b"no image")
    (entry,) = map(json.loads, lines())
    assert (entry["status"], entry["reason"]) == (400, "bad_image")
    assert entry["request_id"] == response.headers["x-request-id"]


def test_fault_and_its_request_carry_the_same_id(
    make_service: Callable[..., Any],
    small_photo: bytes,
    log: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*arguments: object) -> None:
        logging.getLogger("segvlm.request").warning("in a pool thread")
        raise KeyError("secret detail")

    service = make_service()
    assert service.client
    monkeypatch.setattr("service.pipeline.letterbox_picture", broken)
    lines = log("json")
    response = post(service, small_photo)
    entries = [json.loads(line) for line in lines()]
    assert {entry["request_id"] for entry in entries} == {response.headers["x-request-id"]}
    pool, fault, access = entries
    assert pool["message"] == "in a pool thread"
    assert "secret detail" in fault["exc_info"]
    assert access["reason"] == "internal"


def test_text_line_is_short_and_ends_with_the_id(
    make_service: Callable[..., Any], small_photo: bytes, log: Any
) -> None:
    service = make_service()
    assert service.client
    lines = log("text")
    post(service, small_photo, **{"X-Request-Id": "abc-1"})
    (line,) = lines()
    assert " INFO segvlm.access POST /segment 200 ms: total=" in line
    assert line.endswith(" request_id=abc-1")


def test_injected_lines_stay_one_line(make_service: Callable[..., Any], log: Any) -> None:
    """A path with a line break cannot forge an entry of the log."""
    service = make_service()
    assert service.client
    lines = log("text")
    service.client.get("/x%0A2026-01-01%20INFO%20forged")
    assert len(lines()) == 1


def test_access_log_can_be_off(
    make_service: Callable[..., Any], small_photo: bytes, log: Any
) -> None:
    service = make_service(access_log=False)
    assert service.client
    lines = log("text")
    post(service, small_photo)
    assert lines() == []
