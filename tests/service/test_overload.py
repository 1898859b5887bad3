"""Overload, deadlines and faults over HTTP: who waits, who is told what, and who is spared."""

from __future__ import annotations

import base64
import importlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.backends.fake import FakeTokenizer
from tests.service.problem_checks import PATIENCE, check, png, post


@pytest.fixture
def in_background() -> Iterator[Callable[[Callable[[], Any]], list[Any]]]:
    """Run a call in a thread; the list that comes back holds its result when it is done."""
    threads: list[threading.Thread] = []

    def run(call: Callable[[], Any]) -> list[Any]:
        results: list[Any] = []
        threads.append(threading.Thread(target=lambda: results.append(call())))
        threads[-1].start()
        return results

    yield run
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def hold_device(service: Any, small_photo: bytes, in_background: Any) -> list[Any]:
    """Occupy the device with one request until the gate opens."""
    assert service.client
    service.backend.gate.clear()
    results: list[Any] = in_background(lambda: post(service, small_photo, "the first"))
    assert service.backend.entered.wait(PATIENCE)
    return results


def test_full_queue(
    make_service: Callable[..., Any], small_photo: bytes, in_background: Any
) -> None:
    service = make_service(max_queue=1)
    first = hold_device(service, small_photo, in_background)
    response = post(service, small_photo)
    check(response, service, 503, "queue_full")
    assert int(response.headers["retry-after"]) >= 1
    assert service.client.get("/readyz").status_code == 200, "busy is ready"
    service.backend.gate.set()
    while not first:
        threading.Event().wait(0.005)
    assert first[0].status_code == 200
    assert post(service, small_photo).status_code == 200


def test_full_queue_is_noticed_before_the_image_is_decoded(
    make_service: Callable[..., Any], small_photo: bytes, in_background: Any
) -> None:
    service = make_service(max_queue=1)
    hold_device(service, small_photo, in_background)
    check(post(service, b"not even an image"), service, 503, "queue_full")
    service.backend.gate.set()


def test_deadline_covers_the_wait_for_a_free_thread(
    make_service: Callable[..., Any], small_photo: bytes
) -> None:
    """Every image thread is busy: the body is not even parsed, and still there is an answer."""
    service = make_service(timeout=0.3, image_threads=1)
    assert service.client
    leave = threading.Event()
    occupied = service.app.state.pipeline._pool.submit(leave.wait, PATIENCE)
    problem = check(post(service, small_photo), service, 504, "deadline")
    assert "0.3 s" in problem["detail"]
    leave.set()
    assert occupied.result(PATIENCE)
    assert service.engine.images == 0


def test_deadline(service: Any, small_photo: bytes, in_background: Any) -> None:
    first = hold_device(service, small_photo, in_background)
    pipeline = service.app.state.pipeline
    pipeline._settings = service.settings.model_copy(update={"timeout": 0.3})
    problem = check(post(service, small_photo, "never run"), service, 504, "deadline")
    assert "SEGVLM_TIMEOUT" in problem["detail"]
    assert service.engine.images == 1
    service.backend.gate.set()
    while not first:
        threading.Event().wait(0.005)
    assert first[0].status_code == 200
    assert service.backend.batches == [1]


@pytest.mark.parametrize("value", ["0", "-1", "soon", "1e9", "nan", ""])
def test_request_timeout_that_is_no_number(service: Any, small_photo: bytes, value: str) -> None:
    response = post(service, small_photo, headers={"X-Request-Timeout": value})
    problem = check(response, service, 422, "invalid_field")
    assert [fault["field"] for fault in problem["errors"]] == ["X-Request-Timeout"]
    assert service.engine.images == 0


def test_request_timeout_of_the_caller(
    service: Any, small_photo: bytes, in_background: Any
) -> None:
    """It shortens the service's own, frees the place, and the item is never run."""
    first = hold_device(service, small_photo, in_background)
    response = post(service, small_photo, "never run", headers={"X-Request-Timeout": "0.3"})
    assert "0.3 s" in check(response, service, 504, "deadline")["detail"]
    assert service.engine.images == 1
    service.backend.gate.set()
    while not first:
        threading.Event().wait(0.005)
    assert service.backend.batches == [1]
    assert post(service, small_photo, headers={"X-Request-Timeout": "60"}).status_code == 200


def test_request_timeout_cannot_lengthen(
    make_service: Callable[..., Any], small_photo: bytes, in_background: Any
) -> None:
    service = make_service(timeout=0.3)
    hold_device(service, small_photo, in_background)
    response = post(service, small_photo, headers={"X-Request-Timeout": "60"})
    assert response.status_code == 504
    assert "0.3 s" in response.json()["detail"]


def test_draining(service: Any, small_photo: bytes, in_background: Any) -> None:
    first = hold_device(service, small_photo, in_background)
    service.engine.drain()
    response = post(service, small_photo)
    check(response, service, 503, "draining")
    assert int(response.headers["retry-after"]) >= 1
    assert service.client.get("/readyz").status_code == 503
    assert service.client.get("/readyz").json() == {"status": "draining"}
    assert service.client.get("/healthz").status_code == 200
    service.backend.gate.set()
    while not first:
        threading.Event().wait(0.005)
    assert first[0].status_code == 200, "what was accepted is answered"


def test_one_bad_expression_fails_alone(
    service: Any, small_photo: bytes, in_background: Any
) -> None:
    """Three requests share a batch that fails; only the one with the bad item gets a 500."""
    first = hold_device(service, small_photo, in_background)
    tokens = FakeTokenizer().encode(["the venom"], 17).tokens
    service.backend.poison = int(tokens[0, 2])
    neighbours = [
        in_background(lambda word=word: post(service, small_photo, word))
        for word in ("the cat", "the venom", "the hat")
    ]
    while service.metric("segvlm_queue_depth") < 3:
        threading.Event().wait(0.005)
    service.backend.gate.set()
    while not (first and all(neighbours)):
        threading.Event().wait(0.005)
    assert [results[0].status_code for results in neighbours] == [200, 500, 200]
    # After the item that failed alone the model is asked its own two questions.
    assert service.backend.batches == [1, 3, 1, 1, 1, 1, 1]
    check(neighbours[1][0], service, 500, "inference")
    assert "poison" not in neighbours[1][0].text, "a fault's text is for the log only"


def test_fault_of_ours_is_a_problem_too(
    service: Any, small_photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: object) -> None:
        raise KeyError("secret detail")

    monkeypatch.setattr("service.pipeline.letterbox_picture", broken)
    response = post(service, small_photo)
    check(response, service, 500, "internal")
    assert "secret" not in response.text
    assert service.metric("segvlm_requests_total", route="/segment", code="500") == 1
    assert service.engine.images == 0, "its place in the queue is free again"


def test_death_of_the_worker_is_seen_by_probes_and_callers(
    service: Any, small_photo: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert service.client.get("/healthz").status_code == 200

    def die(*arguments: object) -> None:
        raise SystemExit("the driver is gone")

    monkeypatch.setattr(service.backend, "decode", die)
    response = post(service, small_photo)
    check(response, service, 503, "engine_stopped")
    assert service.client.get("/healthz").status_code == 503
    assert service.client.get("/readyz").json() == {"status": "stopped"}
    assert post(service, small_photo).status_code == 503


def test_event_loop_is_free_while_an_image_is_decoded(
    make_service: Callable[..., Any],
    small_photo: bytes,
    monkeypatch: pytest.MonkeyPatch,
    in_background: Any,
) -> None:
    """And while a body is parsed and a mask encoded: each held here until a probe was answered."""
    service = make_service(image_cache_bytes=0)
    assert service.client
    for name in (
        "segment_translation.parse_task",
        "pipeline.decode_photo",
        "answers.describe",
        "answers.render_json",
    ):
        original = resolve(name)
        entered, leave = threading.Event(), threading.Event()

        def held(
            *arguments: Any,
            original: Any = original,
            entered: threading.Event = entered,
            leave: threading.Event = leave,
            **options: Any,
        ) -> Any:
            entered.set()
            assert leave.wait(PATIENCE), "the event loop was blocked"
            return original(*arguments, **options)

        with monkeypatch.context() as patch:
            patch.setattr(f"service.{name}", held)
            results = in_background(lambda: post(service, small_photo))
            assert entered.wait(PATIENCE)
            assert service.client.get("/healthz").status_code == 200
            leave.set()
            while not results:
                threading.Event().wait(0.005)
        assert results[0].status_code == 200


def resolve(name: str) -> Any:
    module, function = name.split(".")
    return getattr(importlib.import_module(f"service.{module}"), function)


def test_model_runs_in_one_thread_only(service: Any, small_photo: bytes) -> None:
    for word in ("a", "b"):
        post(service, small_photo, word)
    encoded = base64.b64encode(png(30, 20)).decode()
    service.client.post("/segment", json={"image": encoded, "expressions": ["x"]})
    assert service.backend.threads == {"segvlm-device"}
