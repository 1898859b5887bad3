"""Every Prometheus object of the service, in a registry of its own, so that a process can hold
several applications. Nothing else in the service creates one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from service.errors import problem_kinds

SECONDS = (
    0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2, 4, 8, 15, 30,
)  # fmt: skip
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
CACHES = ("image", "text")

# `*_created` samples are gauges of a name that promtool's lint refuses beside a counter.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """What is counted. Every series that can be named in advance exists from the first scrape."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._count_requests()
        self._time_stages()
        self._watch_engine()
        ProcessCollector(registry=self.registry)

    def _count_requests(self) -> None:
        self.requests = Counter(
            "segvlm_requests_total",
            "Requests answered, by route template and status code.",
            ("route", "code"),
            registry=self.registry,
        )
        self.rejected = Counter(
            "segvlm_rejected_total",
            "Requests that got no result, by reason.",
            ("reason",),
            registry=self.registry,
        )
        for kind in problem_kinds():
            self.rejected.labels(kind.reason)
        self.inflight = Gauge(
            "segvlm_inflight_requests",
            "Requests that are being handled, the upload included.",
            registry=self.registry,
        )
        self.request_seconds = Histogram(
            "segvlm_request_seconds",
            "From the first header to the last byte of the answer, by route template.",
            ("route",),
            buckets=SECONDS,
            registry=self.registry,
        )

    def _time_stages(self) -> None:
        self.decode_seconds = self._stage("decode", "Image bytes to RGB pixels, for each image.")
        self.preprocess_seconds = self._stage(
            "preprocess", "Letterbox, content hash and tokens, for each request."
        )
        self.queue_seconds = self._stage(
            "queue", "Wait for the device, for each (image, expression) pair."
        )
        self.inference_seconds = self._stage("inference", "The model, for each batch.")
        self.postprocess_seconds = self._stage(
            "postprocess", "Logits to encoded masks, for each request."
        )

    def _watch_engine(self) -> None:
        self.batch_size = Histogram(
            "segvlm_batch_size",
            "(image, expression) pairs in a batch.",
            buckets=BATCH_SIZES,
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "segvlm_queue_depth",
            "(image, expression) pairs that wait for the device.",
            registry=self.registry,
        )
        self.model_ready = Gauge(
            "segvlm_model_ready",
            "1 when the model is warmed up and accepts requests, else 0.",
            registry=self.registry,
        )
        self.model_info = Gauge(
            "segvlm_model_info",
            "Always 1; the labels say which model is served.",
            ("name", "version", "backend"),
            registry=self.registry,
        )
        self.cache_hits = Counter(
            "segvlm_cache_hits_total",
            "Features found in a cache.",
            ("cache",),
            registry=self.registry,
        )
        self.cache_misses = Counter(
            "segvlm_cache_misses_total",
            "Features that had to be computed.",
            ("cache",),
            registry=self.registry,
        )
        for cache in CACHES:
            self.cache_hits.labels(cache)
            self.cache_misses.labels(cache)

    def _stage(self, stage: str, documentation: str) -> Histogram:
        return Histogram(
            f"segvlm_{stage}_seconds", documentation, buckets=SECONDS, registry=self.registry
        )

    def announce_routes(self, routes: Iterable[str]) -> None:
        """Create the series of each route, so that a rate over the first request is not lost."""
        for route in routes:
            self.requests.labels(route, "200")
            self.request_seconds.labels(route)

    def watch(self, depth: Callable[[], float], ready: Callable[[], bool]) -> None:
        """Read the queue's depth and the readiness at each scrape."""
        self.queue_depth.set_function(depth)
        self.model_ready.set_function(lambda: float(ready()))

    def exposition(self) -> bytes:
        """All series in the text format of Prometheus."""
        return generate_latest(self.registry)
