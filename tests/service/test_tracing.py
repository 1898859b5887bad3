"""OpenTelemetry spans, through the library's own exporter interface."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from starlette.testclient import TestClient

from service.app import create_app
from service.backends.fake import load_fake
from service.engine import Engine
from service.metrics import Metrics
from service.settings import Settings
from service.tracing import NoTracer, OtelTracer, make_tracer

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def client(exporter: InMemorySpanExporter) -> Iterator[TestClient]:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    settings = Settings(backend="fake", access_log=False)
    engine = Engine(load_fake(64), settings, Metrics())
    with TestClient(create_app(settings, engine, OtelTracer(provider))) as made:
        while not engine.ready:
            pass
        yield made


def post(client: TestClient, image: bytes, **headers: str) -> Any:
    return client.post(
        "/segment", files={"image": image}, data={"expression": "the dog"}, headers=headers
    )


def test_a_span_for_the_request_and_one_for_each_stage(
    client: TestClient, exporter: InMemorySpanExporter, small_photo: bytes
) -> None:
    assert post(client, small_photo).status_code == 200
    *stages, server = exporter.get_finished_spans()
    assert server.name == "POST /segment"
    assert server.attributes["http.response.status_code"] == 200
    assert server.parent is None
    names = [span.name for span in stages]
    assert [name for name in names if name != "queue"] == [
        "parse",
        "decode",
        "preprocess",
        "inference",
        "postprocess",
    ]
    for span in stages:
        assert span.parent.span_id == server.context.span_id
        assert server.start_time <= span.start_time <= span.end_time <= server.end_time
    (inference,) = (span for span in stages if span.name == "inference")
    assert inference.attributes["segvlm.batch"] == 1


def test_it_joins_the_caller_s_trace(
    client: TestClient, exporter: InMemorySpanExporter, small_photo: bytes
) -> None:
    post(client, small_photo, traceparent=f"00-{TRACE}-{PARENT}-01")
    spans = exporter.get_finished_spans()
    assert {f"{span.context.trace_id:032x}" for span in spans} == {TRACE}
    assert f"{spans[-1].parent.span_id:016x}" == PARENT


def test_broken_traceparent_is_no_parent(
    client: TestClient, exporter: InMemorySpanExporter, small_photo: bytes
) -> None:
    assert post(client, small_photo, traceparent="nonsense").status_code == 200
    assert exporter.get_finished_spans()[-1].parent is None


def test_refusal_is_named(client: TestClient, exporter: InMemorySpanExporter) -> None:
    post(client, b"no image")
    server = exporter.get_finished_spans()[-1]
    assert server.attributes["error.type"] == "bad_image"
    assert server.attributes["http.response.status_code"] == 400


def test_settings_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(make_tracer(Settings()), NoTracer)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "masks")
    tracer = make_tracer(Settings(traces="otlp"))
    assert isinstance(tracer, OtelTracer)
    assert tracer._provider.resource.attributes["service.name"] == "masks"
    tracer.close()


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(ValueError, match=r"segvlm\[traces\]"):
        make_tracer(Settings(traces="otlp"))
