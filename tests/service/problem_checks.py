"""What the tests of refusals share: requests that are refused, and what they must be told."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import httpx2 as httpx
from PIL import Image

PATIENCE = 60.0


def png(width: int, height: int) -> bytes:
    buffer = BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return buffer.getvalue()


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
