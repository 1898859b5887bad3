"""Every way to fail over HTTP: status, reason, problem+json, a remedy, and a count."""

from __future__ import annotations

import asyncio
import base64
import importlib
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from io import BytesIO
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from PIL import Image

from service.backends.fake import FakeTokenizer

PATIENCE = 60.0


def png(width: int, height: int) -> bytes:
    buffer = BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


def truncated_jpeg() -> bytes:
    buffer = BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()[:-500]


def check(response: httpx.Response, service: Any, status: int, reason: str) -> dict[str, Any]:
    """The response is that problem, complete and counted; return its body."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert problem["reason"] == reason
    assert problem["type"] == f"urn:segvlm:problem:{reason.replace('_', '-')}"
    assert problem["title"]
    assert problem["request_id"] == response.headers["x-request-id"]
    assert len(problem["detail"]) > 20
    assert service.metric("segvlm_rejected_total", reason=reason) == 1
    return problem


def post(service: Any, image: bytes, expression: str = "the dog", **options: Any) -> httpx.Response:
    return service.client.post(
        "/segment", files={"image": image}, data={"expression": expression}, **options
    )


@pytest.mark.parametrize(
    ("image", "status", "reason"),
    [
        (b"", 400, "bad_image"),
        (b"not an image", 400, "bad_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 400, "bad_image"),
        (b"<!doctype html><script>alert(1)</script>", 400, "bad_image"),
        (truncated_jpeg(), 400, "bad_image"),
        (png(1001, 1000), 413, "too_large"),
    ],
    ids=["empty", "text", "svg", "html", "truncated", "pixels"],
)
def test_images_that_are_refused(
    make_service: Callable[..., Any], image: bytes, status: int, reason: str
) -> None:
    service = make_service(max_pixels=1_000_000)
    problem = check(post(service, image), service, status, reason)
    assert "send" in problem["detail"] or "scale" in problem["detail"]
    assert service.backend.batches == []


def test_pixel_problem_says_the_limit(make_service: Callable[..., Any]) -> None:
    service = make_service(max_pixels=1_000)
    assert check(post(service, png(100, 100)), service, 413, "too_large")["limit"] == 1_000


def test_unknown_path(service: Any) -> None:
    assert "/docs" in check(service.client.get("/"), service, 404, "not_found")["detail"]
    service.client.post("/segment/../../etc/passwd")
    assert service.metric("segvlm_requests_total", route="unmatched", code="404") == 2


def test_wrong_method(service: Any) -> None:
    response = service.client.get("/segment")
    check(response, service, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_wrong_media_type(service: Any, small_photo: bytes) -> None:
    response = service.client.post(
        "/segment", content=small_photo, headers={"Content-Type": "image/png"}
    )
    problem = check(response, service, 415, "unsupported_media")
    assert "multipart/form-data" in problem["detail"]


def test_malformed_bodies(service: Any) -> None:
    response = service.client.post(
        "/segment", content=b"{", headers={"Content-Type": "application/json"}
    )
    check(response, service, 400, "malformed_body")


def test_invalid_fields(service: Any, small_photo: bytes) -> None:
    response = post(service, small_photo, params={"threshold": "2", "format": "bmp"})
    problem = check(response, service, 422, "invalid_field")
    assert {fault["field"] for fault in problem["errors"]} == {"threshold", "format"}


def test_malformed_base64(service: Any) -> None:
    response = service.client.post("/segment", json={"image": "%%%", "expressions": ["a"]})
    problem = check(response, service, 422, "invalid_field")
    assert problem["errors"][0]["field"] == "image"


@pytest.mark.parametrize("declared", [True, False], ids=["content-length", "chunked"])
def test_too_many_bytes(make_service: Callable[..., Any], declared: bool) -> None:
    service = make_service(max_body_bytes=10_000)
    content: Any = bytes(10_001) if declared else (bytes(1000) for _ in range(11))
    response = service.client.post(
        "/segment", content=content, headers={"Content-Type": "application/json"}
    )
    assert check(response, service, 413, "too_large")["limit"] == 10_000


def test_too_many_bytes_are_not_read_to_the_end(make_service: Callable[..., Any]) -> None:
    """An endless upload is answered after the first bytes beyond the limit."""
    service = make_service(max_body_bytes=10_000)

    async def scenario() -> tuple[httpx.Response, int]:
        sent = 0

        async def endless() -> AsyncIterator[bytes]:
            nonlocal sent
            while sent < 10_000_000:
                sent += 1000
                yield bytes(1000)

        async with asgi_client(service) as client:
            response = await client.post(
                "/segment", content=endless(), headers={"Content-Type": "application/json"}
            )
        return response, sent

    response, sent = asyncio.run(scenario())
    check(response, service, 413, "too_large")
    assert sent <= 12_000


def test_all_bodies_together_are_bounded(make_service: Callable[..., Any]) -> None:
    service = make_service(max_buffered_bytes=50_000)
    response = service.client.post("/segment", content=bytes(50_001))
    check(response, service, 503, "queue_full")
    assert response.headers["retry-after"] == "1"
    for _ in range(3):  # what was counted is given back, whatever became of the request
        assert service.client.post("/segment", content=bytes(40_000)).status_code == 415


def test_slow_upload_is_cut_off(make_service: Callable[..., Any]) -> None:
    service = make_service(upload_timeout=0.05)

    async def scenario() -> httpx.Response:
        async def stalled() -> AsyncIterator[bytes]:
            yield b"{"
            await asyncio.sleep(PATIENCE)

        async with asgi_client(service) as client:
            return await client.post(
                "/segment", content=stalled(), headers={"Content-Type": "application/json"}
            )

    response = asyncio.run(scenario())
    problem = check(response, service, 408, "upload_timeout")
    assert response.headers["connection"] == "close"
    assert "SEGVLM_UPLOAD_TIMEOUT" in problem["detail"]


def asgi_client(service: Any) -> httpx.AsyncClient:
    """A client of the bare application: for what must not wait for a whole request first."""
    return httpx.AsyncClient(
        transport=StreamingTransport(service.app), base_url="http://test", timeout=PATIENCE
    )


class StreamingTransport(httpx.AsyncBaseTransport):
    """Feeds the request's body piece by piece, as a server does, and stops when it is answered."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        pieces = request.stream.__aiter__()  # type: ignore[union-attr]
        messages: list[Any] = []

        async def receive() -> dict[str, Any]:
            try:
                return {"type": "http.request", "body": await anext(pieces), "more_body": True}
            except StopAsyncIteration:
                return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Any) -> None:
            messages.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": request.method,
            "path": request.url.path,
            "raw_path": request.url.raw_path,
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [(name.lower(), value) for name, value in request.headers.raw],
            "client": ("test", 1),
            "server": ("test", 80),
        }
        await self._app(scope, receive, send)
        start, *bodies = messages
        return httpx.Response(
            start["status"],
            headers=start["headers"],
            content=b"".join(message.get("body", b"") for message in bodies),
        )


# -- overload, deadlines and faults ------------------------------------------------------------


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
