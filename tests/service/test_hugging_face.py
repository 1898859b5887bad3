"""Hugging Face's protocol over HTTP: what its client cannot show."""

from __future__ import annotations

import base64
from collections.abc import Callable
from io import BytesIO
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from PIL import Image

URL = "/hf/image-segmentation"
RED, BLUE = "the red box", "a blue ring"


def refused(response: httpx.Response, service: Any, status: int, reason: str) -> str:
    """The words of an error in the protocol's form, which is counted."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json().keys() == {"error", "error_type"}
    assert response.json()["error_type"] == reason
    assert service.metric("segvlm_rejected_total", reason=reason) == 1
    assert service.metric("segvlm_requests_total", route=URL, code=str(status)) == 1
    return str(response.json()["error"])


@pytest.mark.parametrize("media_type", [None, "image/png", "application/octet-stream", "text/x"])
def test_image_as_it_is(
    make_service: Callable[..., Any], photo: Any, media_type: str | None
) -> None:
    service = make_service(image_size=320)
    response = service.client.post(
        URL,
        params={"expression": [RED, BLUE]},
        content=photo.encoded(),
        headers={"Content-Type": media_type} if media_type else {},
    )
    assert response.status_code == 200, response.text
    segments = response.json()
    assert [segment["label"] for segment in segments] == [RED, BLUE]
    for segment, truth in zip(segments, (photo.red, photo.blue), strict=True):
        with Image.open(BytesIO(base64.b64decode(segment["mask"]))) as picture:
            assert picture.mode == "L"
            mask = np.asarray(picture)
        assert set(np.unique(mask)) == {0, 255}
        assert (truth & (mask > 0)).sum() / (truth | (mask > 0)).sum() > 0.9
        assert 0.8 < segment["score"] <= 1
    assert "total;dur=" in response.headers["server-timing"]


def post_json(service: Any, image: bytes, query: str = "", **parameters: Any) -> httpx.Response:
    document = {"inputs": base64.b64encode(image).decode(), "parameters": parameters}
    return service.client.post(URL + query, json=document)


@pytest.mark.parametrize("expression", [BLUE, [BLUE]])
def test_expressions_in_the_parameters(
    service: Any, small_photo: bytes, expression: str | list[str]
) -> None:
    response = post_json(service, small_photo, "?expression=the+red+box", expression=expression)
    assert [segment["label"] for segment in response.json()] == [RED, BLUE]


def test_json_without_its_content_type(service: Any, small_photo: bytes) -> None:
    content = b' {"inputs": "%s"}' % base64.b64encode(small_photo)
    response = service.client.post(f"{URL}?expression=x", content=content)
    assert response.status_code == 200, response.text


def test_both_thresholds(service: Any, small_photo: bytes) -> None:
    def area(**parameters: Any) -> int:
        (segment,) = post_json(service, small_photo, expression=RED, **parameters).json()
        with Image.open(BytesIO(base64.b64decode(segment["mask"]))) as picture:
            return int((np.asarray(picture) > 0).sum())

    assert area(mask_threshold=0.1) > area(mask_threshold=0.9) > 0
    score = post_json(service, small_photo, expression=RED).json()[0]["score"]
    assert len(post_json(service, small_photo, expression=RED, threshold=score - 0.01).json()) == 1
    assert post_json(service, small_photo, expression=RED, threshold=score + 0.01).json() == []


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({}, "expression: missing; add ?expression=the+dog"),
        ({"expression": ["a", " "]}, "expression.1: empty"),
        ({"expression": ["a"] * 33}, "33 were sent, at most 32"),
        ({"expression": "a" * 257}, "at most 256"),
        ({"expression": "a", "mask_threshold": 2}, "parameters.mask_threshold"),
        ({"expression": "a", "subtask": "panoptic"}, "parameters.subtask"),
        ({"expression": "a", "overlap_mask_area_threshold": 0.5}, "not supported; masks are whole"),
        ({"expression": "a", "top_k": 5}, "parameters.top_k"),
    ],
)
def test_parameters_that_are_refused(
    service: Any, small_photo: bytes, parameters: dict[str, Any], words: str
) -> None:
    response = post_json(service, small_photo, **parameters)
    assert words in refused(response, service, 422, "invalid_field")
    assert service.backend.batches == []


def test_query_that_is_refused(service: Any, small_photo: bytes) -> None:
    response = service.client.post(f"{URL}?expresion=x", content=small_photo)
    assert "expresion: unknown" in refused(response, service, 422, "invalid_field")


@pytest.mark.parametrize(
    ("request_parts", "status", "reason"),
    [
        ({"content": b"not an image"}, 400, "bad_image"),
        ({"content": b""}, 400, "bad_image"),
        ({"content": b"{"}, 400, "malformed_body"),
        ({"json": {"inputs": "%%"}}, 422, "invalid_field"),
        ({"json": {"image": "AAAA"}}, 422, "invalid_field"),
        ({"files": {"image": b"x"}}, 415, "unsupported_media"),
        ({"content": b"x", "headers": {"Content-Encoding": "gzip"}}, 415, "unsupported_media"),
        ({"content": bytes(20_001)}, 413, "too_large"),
    ],
)
def test_bodies_that_are_refused(
    make_service: Callable[..., Any], request_parts: dict[str, Any], status: int, reason: str
) -> None:
    service = make_service(max_body_bytes=20_000)
    response = service.client.post(f"{URL}?expression=x", **request_parts)
    assert refused(response, service, status, reason)


def test_overload_says_when_to_come_back(service: Any, small_photo: bytes) -> None:
    assert service.client
    service.engine.drain()
    response = service.client.post(f"{URL}?expression=x", content=small_photo)
    refused(response, service, 503, "draining")
    assert int(response.headers["retry-after"]) >= 1


def test_unknown_path_in_its_form(service: Any) -> None:
    assert service.client.post("/hf/text-generation").json()["error_type"] == "not_found"
