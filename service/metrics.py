"""Every Prometheus object of the service, in a registry of its own, so that a process can hold
several applications. Nothing else in the service creates one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from service.batcher import FailureKind
from service.errors import problem_kinds
from service.flight import BatchReport
from service.request_record import RequestRecord

SECONDS = (
    0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.125, 0.25, 0.5, 1, 2, 4, 8, 15, 30,
)  # fmt: skip
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)
CACHES = ("image", "text")
STREAM_ENDS = (
    "closed", "idle", "slow_reader", "too_large", "bad_message", "draining", "engine_stopped",
    "internal", "streams_full", "foreign_origin", "unauthorized", "rate_limited", "refused",
)  # fmt: skip
KEY_USES = ("request", "stream", "frame")
ANONYMOUS = "anonymous"
"""The key of all that comes without a known one; it is all, where no keys are asked for."""
REFUSALS = frozenset({"unauthorized", "rate_limited"})
"""The reasons that are about a key."""
FAILURES: tuple[FailureKind, ...] = ("exception", "out_of_memory")

# `*_created` samples are gauges of a name that promtool's lint refuses beside a counter.
disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """What is counted. Every series that can be named in advance exists from the first scrape."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._count_requests()
        self._count_streams()
        self._count_keys()
        self._time_stages()
        self._watch_engine()
        self._watch_caches()
        ProcessCollector(registry=self.registry)

    def _count_requests(self) -> None:
        self.received = Counter(
            "segvlm_received_total",
            "Requests whose headers arrived; each ends in one code of segvlm_requests_total.",
            registry=self.registry,
        )
        self.requests = Counter(
            "segvlm_requests_total",
            "Requests ended, by route template and status code.",
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

    def _count_streams(self) -> None:
        self.streams_open = Gauge(
            "segvlm_streams_open", "Streams that are open.", registry=self.registry
        )
        self.streams = Counter(
            "segvlm_streams_total",
            "Streams ended or refused, by how.",
            ("end",),
            registry=self.registry,
        )
        for end in STREAM_ENDS:
            self.streams.labels(end)
        self.frames_received = Counter(
            "segvlm_frames_received_total",
            "Frames that arrived; each is answered, dropped or failed.",
            registry=self.registry,
        )
        self.frames_answered = Counter(
            "segvlm_frames_answered_total", "Frames whose masks were sent.", registry=self.registry
        )
        self.frames_dropped = Counter(
            "segvlm_frames_dropped_total",
            "Frames that a newer one replaced while they waited.",
            registry=self.registry,
        )
        self.frames_failed = Counter(
            "segvlm_frames_failed_total",
            "Frames that got no masks, by reason.",
            ("reason",),
            registry=self.registry,
        )
        for kind in problem_kinds():
            self.frames_failed.labels(kind.reason)
        self.frame_seconds = Histogram(
            "segvlm_frame_seconds",
            "From a frame's arrival until its masks were sent, less its wait for its key's rate.",
            buckets=SECONDS,
            registry=self.registry,
        )

    def _count_keys(self) -> None:
        self.key_uses = Counter(
            "segvlm_key_uses_total",
            "Requests, streams and frames that were let in, by the name of their API key.",
            ("key", "use"),
            registry=self.registry,
        )
        self.key_refusals = Counter(
            "segvlm_key_refusals_total",
            "Those that were refused for want of a key, or by its limits.",
            ("key", "use"),
            registry=self.registry,
        )
        self.announce_keys([ANONYMOUS])

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
        self.batch_failures = Counter(
            "segvlm_batch_failures_total",
            "Batches that failed and were run again in parts, or failed for good, by cause.",
            ("kind",),
            registry=self.registry,
        )
        for failure in FAILURES:
            self.batch_failures.labels(failure)
        self.device_busy = Counter(
            "segvlm_device_busy_seconds_total",
            "Seconds in which the device worked on a batch; its rate is the share of time.",
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "segvlm_queue_depth",
            "(image, expression) pairs that wait for the device.",
            registry=self.registry,
        )
        self.admitted_images = Gauge(
            "segvlm_admitted_images",
            "Images accepted and not yet answered.",
            registry=self.registry,
        )
        self.admitted_images_limit = Gauge(
            "segvlm_admitted_images_limit",
            "Images that may be accepted at a time; one more gets a 503.",
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

    def _watch_caches(self) -> None:
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
        self.cache_bytes = Gauge(
            "segvlm_cache_bytes",
            "Bytes of features that a cache holds.",
            ("cache",),
            registry=self.registry,
        )
        for cache in CACHES:
            self.cache_hits.labels(cache)
            self.cache_misses.labels(cache)
            self.cache_bytes.labels(cache)

    def _stage(self, stage: str, documentation: str) -> Histogram:
        return Histogram(
            f"segvlm_{stage}_seconds", documentation, buckets=SECONDS, registry=self.registry
        )

    def announce_route(self, route: str, codes: Iterable[int]) -> None:
        """Create its series, so that a rate over the first answer of each code is not lost."""
        for code in codes:
            self.requests.labels(route, str(code))
        self.request_seconds.labels(route)

    def announce_keys(self, names: Iterable[str]) -> None:
        """Create their series, as `announce_route` does."""
        for name in names:
            for use in KEY_USES:
                self.key_uses.labels(name, use)
                self.key_refusals.labels(name, use)

    def watch(
        self,
        queue_depth: Callable[[], float],
        admitted_images: Callable[[], float],
        model_ready: Callable[[], float],
        cache_bytes: Mapping[str, Callable[[], float]],
        device_memory: Callable[[], Mapping[str, int]],
    ) -> None:
        """Read these at each scrape."""
        self.queue_depth.set_function(queue_depth)
        self.admitted_images.set_function(admitted_images)
        self.model_ready.set_function(model_ready)
        for cache, read in cache_bytes.items():
            self.cache_bytes.labels(cache).set_function(read)
        self.registry.register(_DeviceMemory(device_memory))

    # -- observed ------------------------------------------------------------------------------

    def request_started(self) -> None:
        """A request's headers arrived."""
        self.received.inc()
        self.inflight.inc()

    def request_finished(self, record: RequestRecord) -> None:
        """Count a request; the only place that does, so each is counted once."""
        self.inflight.dec()
        self.requests.labels(record.route, str(record.status)).inc()
        if record.reason is not None:
            self.rejected.labels(record.reason).inc()
        seconds = record.finished_at - record.started_at
        self.request_seconds.labels(record.route).observe(seconds)
        self._count_key("request", record)

    def stream_finished(self, record: RequestRecord) -> None:
        """Count a stream, also one that was refused; the only place that does."""
        unsaid = "closed" if record.status == 101 else "refused"
        self.streams.labels(record.reason or unsaid).inc()
        self._count_key("stream", record)

    def _count_key(self, use: str, record: RequestRecord) -> None:
        counted = self.key_refusals if record.reason in REFUSALS else self.key_uses
        counted.labels(record.key or ANONYMOUS, use).inc()

    def batch_finished(self, report: BatchReport) -> None:
        """See `service.batcher.BatchObserver`."""
        self.batch_size.observe(report.size)
        self.inference_seconds.observe(report.finished_at - report.started_at)
        self.device_busy.inc(report.finished_at - report.started_at)
        for queued_at in report.queued_at:
            self.queue_seconds.observe(max(0.0, report.started_at - queued_at))

    def batch_failed(self, kind: FailureKind) -> None:
        """See `service.batcher.BatchObserver`."""
        self.batch_failures.labels(kind).inc()

    def exposition(self) -> bytes:
        """All series in the text format of Prometheus."""
        return generate_latest(self.registry)


class _DeviceMemory(Collector):
    """The GPU's memory; no series at all where the device has none of its own."""

    def __init__(self, read: Callable[[], Mapping[str, int]]) -> None:
        self._read = read

    def collect(self) -> Iterator[GaugeMetricFamily]:
        kinds = self._read()
        if kinds:
            family = GaugeMetricFamily(
                "segvlm_gpu_memory_bytes", "Memory of the GPU, by kind.", labels=["kind"]
            )
            for kind, value in kinds.items():
                family.add_metric([kind], value)
            yield family
