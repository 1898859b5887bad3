"""What Prometheus scrapes: the names, from the first scrape on, and a clean exposition."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

NAMES = {
    "segvlm_requests": "counter",
    "segvlm_rejected": "counter",
    "segvlm_request_seconds": "histogram",
    "segvlm_decode_seconds": "histogram",
    "segvlm_preprocess_seconds": "histogram",
    "segvlm_queue_seconds": "histogram",
    "segvlm_inference_seconds": "histogram",
    "segvlm_postprocess_seconds": "histogram",
    "segvlm_batch_size": "histogram",
    "segvlm_queue_depth": "gauge",
    "segvlm_admitted_images": "gauge",
    "segvlm_admitted_images_limit": "gauge",
    "segvlm_inflight_requests": "gauge",
    "segvlm_streams_open": "gauge",
    "segvlm_streams": "counter",
    "segvlm_frames_received": "counter",
    "segvlm_frames_answered": "counter",
    "segvlm_frames_dropped": "counter",
    "segvlm_frames_failed": "counter",
    "segvlm_frame_seconds": "histogram",
    "segvlm_key_uses": "counter",
    "segvlm_key_refusals": "counter",
    "segvlm_model_ready": "gauge",
    "segvlm_model_info": "gauge",
    "segvlm_cache_hits": "counter",
    "segvlm_cache_misses": "counter",
}


def scrape(service: Any) -> dict[str, Any]:
    response = service.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {family.name: family for family in text_string_to_metric_families(response.text)}


def test_names_and_series_are_there_from_the_first_scrape(service: Any) -> None:
    families = scrape(service)
    assert {name: families[name].type for name in NAMES} == NAMES
    reasons = {sample.labels["reason"] for sample in families["segvlm_rejected"].samples}
    assert {"queue_full", "deadline", "disconnected", "draining", "too_large"} <= reasons
    caches = {sample.labels["cache"] for sample in families["segvlm_cache_hits"].samples}
    assert caches == {"image", "text"}
    routes = {sample.labels["route"] for sample in families["segvlm_requests"].samples}
    assert {"/segment", "/healthz", "/readyz", "/metrics"} <= routes
    codes = {
        sample.labels["code"]
        for sample in families["segvlm_requests"].samples
        if sample.labels["route"] == "/segment"
    }
    assert {"200", "400", "413", "422", "500", "503", "504"} <= codes
    (info,) = families["segvlm_model_info"].samples
    assert info.labels == {"name": "fake", "version": "1", "backend": "fake"}
    assert families["segvlm_model_ready"].samples[0].value == 1


def test_requests_are_counted_by_route_and_code(service: Any, small_photo: bytes) -> None:
    files = {"image": small_photo}
    for number in range(3):
        data = {"expression": [f"a {number}", f"b {number}"]}
        assert service.client.post("/segment", files=files, data=data).status_code == 200
    service.client.post("/segment", files=files)
    assert service.metric("segvlm_requests_total", route="/segment", code="200") == 3
    assert service.metric("segvlm_requests_total", route="/segment", code="422") == 1
    assert service.metric("segvlm_request_seconds_count", route="/segment") == 4
    assert service.metric("segvlm_batch_size_sum") == 6
    assert service.metric("segvlm_batch_size_count") == 3
    assert service.metric("segvlm_queue_seconds_count") == 6
    for stage in ("preprocess", "inference", "postprocess"):
        assert service.metric(f"segvlm_{stage}_seconds_count") == 3
    assert service.metric("segvlm_decode_seconds_count") == 1  # it was the same photo each time
    assert service.metric("segvlm_received_total") == 4
    assert service.metric("segvlm_inflight_requests") == 0


def test_buckets_reach_from_half_a_millisecond_to_half_a_minute(service: Any) -> None:
    family = scrape(service)["segvlm_decode_seconds"]
    bounds = [float(s.labels["le"]) for s in family.samples if s.name.endswith("_bucket")][:-1]
    assert (bounds[0], bounds[-1]) == (0.0005, 30)
    steps = [after / before for before, after in pairwise(bounds)]
    assert all(1.5 <= step <= 2.05 for step in steps)


def test_places_that_are_taken_are_told_beside_how_many_there_are(
    make_service: Callable[..., Any], small_photo: bytes
) -> None:
    service = make_service(max_queue=2)
    assert service.client.get("/metrics").status_code == 200
    assert service.metric("segvlm_admitted_images_limit") == 2
    files, data = {"image": small_photo}, {"expression": "a"}
    with service.engine.admit(), service.engine.admit():
        assert service.metric("segvlm_admitted_images") == 2
        assert service.client.post("/segment", files=files, data=data).status_code == 503
    assert service.metric("segvlm_admitted_images") == 0


def test_two_applications_in_one_process_count_apart(make_service: Callable[..., Any]) -> None:
    first, second = make_service(), make_service()
    first.client.get("/healthz")
    assert first.metric("segvlm_requests_total", route="/healthz", code="200") == 1
    assert second.metric("segvlm_requests_total", route="/healthz", code="200") == 0


def test_paths_of_a_scanner_make_one_series(service: Any) -> None:
    for number in range(20):
        service.client.get(f"/wp-admin/{number}.php")
    families = scrape(service)
    routes = {sample.labels["route"] for sample in families["segvlm_requests"].samples}
    assert not any("wp-admin" in route for route in routes)
    assert service.metric("segvlm_requests_total", route="unmatched", code="404") == 20


def test_exposition_follows_the_naming_rules(service: Any) -> None:
    """The rules of `promtool check metrics` that a client library does not enforce itself."""
    for family in scrape(service).values():
        assert family.documentation.strip()
        assert not family.name.endswith(("_total", "_count", "_sum", "_bucket", "_created"))
        if family.type == "counter":
            assert all(sample.name.endswith("_total") for sample in family.samples)
        assert not any(unit in family.name for unit in ("milliseconds", "_ms", "_ratio_percent"))


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed here")
def test_promtool_finds_no_fault(service: Any) -> None:
    exposition = service.client.get("/metrics").content
    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=exposition, capture_output=True, check=False
    )
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")
