"""What is wrong with a request: status, reason, problem+json, a remedy, and a count."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.service.problem_checks import check, png, post


def truncated_jpeg() -> bytes:
    buffer = BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, "JPEG")
    return buffer.getvalue()[:-500]


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
    assert "/docs" in check(service.client.get("/nowhere"), service, 404, "not_found")["detail"]
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
