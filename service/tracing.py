"""OpenTelemetry traces, an option: `pip install segvlm[traces]` and SEGVLM_TRACES=otlp.

A trace is made of the times that every request is measured by anyway, after it has ended, so the
request itself pays nothing. Where traces go, and the service's name in them, is said by
OpenTelemetry's own variables (OTEL_EXPORTER_OTLP_ENDPOINT, OTEL_SERVICE_NAME, ...).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from service.request_record import RequestRecord
from service.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


class Tracer(Protocol):
    """Wants to know of requests that ended; called on the event loop, so it must be quick."""

    def record(self, ended: RequestRecord) -> None: ...

    def close(self) -> None: ...


class NoTracer:
    """Traces are off."""

    def record(self, ended: RequestRecord) -> None:
        pass

    def close(self) -> None:
        pass


class OtelTracer:
    """A server span for each request with a span for each stage below it."""

    def __init__(self, provider: TracerProvider) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = provider
        self._tracer = provider.get_tracer("segvlm")
        self._propagator = TraceContextTextMapPropagator()
        self._epoch = time.time() - time.monotonic()

    def record(self, ended: RequestRecord) -> None:
        """Make the spans; their export happens in a thread of the library."""
        from opentelemetry import trace

        carrier = {"traceparent": ended.traceparent} if ended.traceparent else {}
        server = self._tracer.start_span(
            f"{ended.method} {ended.route}",
            context=self._propagator.extract(carrier),
            kind=trace.SpanKind.SERVER,
            start_time=self._nanoseconds(ended.started_at),
            attributes={
                "http.request.method": ended.method,
                "http.route": ended.route,
                "url.path": ended.path,
                "http.response.status_code": ended.status,
                "segvlm.request_id": ended.request_id,
            },
        )
        if ended.reason is not None:
            server.set_attribute("error.type", ended.reason)
        if ended.status >= 500:
            server.set_status(trace.StatusCode.ERROR, ended.reason)
        below = trace.set_span_in_context(server)
        for stage in ended.stages:
            span = self._tracer.start_span(
                stage.name,
                context=below,
                start_time=self._nanoseconds(stage.started_at),
                attributes={f"segvlm.{name}": value for name, value in stage.detail.items()},
            )
            span.end(self._nanoseconds(stage.finished_at))
        server.end(self._nanoseconds(ended.finished_at))

    def close(self) -> None:
        """Export what is left."""
        self._provider.shutdown()

    def _nanoseconds(self, monotonic: float) -> int:
        return int((self._epoch + monotonic) * 1e9)


def make_tracer(settings: Settings) -> Tracer:
    """What the settings ask for. Raises ValueError if OpenTelemetry is not installed."""
    if settings.traces == "off":
        return NoTracer()
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ValueError(
            f"SEGVLM_TRACES=otlp needs OpenTelemetry ({error}); run pip install 'segvlm[traces]'"
        ) from error
    resource = Resource.create()  # reads OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES
    if str(resource.attributes["service.name"]).startswith("unknown_service"):
        resource = resource.merge(Resource({"service.name": "segvlm"}))
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return OtelTracer(provider)
