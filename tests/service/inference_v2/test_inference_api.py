"""The protocol over HTTP: health, metadata, errors as its clients expect them, limits."""

from __future__ import annotations

import base64
import gzip
import json
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco

INFER = "/v2/models/fake/infer"
ROUTE = "/v2/models/{model}/infer"


def document(image: bytes, *texts: str, **members: Any) -> dict[str, Any]:
    return {
        "inputs": [
            {
                "name": "image",
                "shape": [1],
                "datatype": "BYTES",
                "data": [base64.b64encode(image).decode()],
            },
            {"name": "expression", "shape": [len(texts)], "datatype": "BYTES", "data": texts},
        ],
        **members,
    }


def refused(response: Any, status: int, words: str) -> None:
    """The answer is an error of this protocol and nothing else."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json().keys() == {"error"}
    assert words in response.json()["error"]


def test_health(service: Any) -> None:
    assert service.client.get("/v2/health/live").json() == {"live": True}
    assert service.client.get("/v2/health/ready").json() == {"ready": True}
    for path in ("/v2/models/fake/ready", "/v2/models/fake/versions/1/ready"):
        assert service.client.get(path).json() == {"name": "fake", "ready": True}
    with service.engine.admit():  # what is in flight keeps the process alive
        service.engine.drain()
        assert service.client.get("/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", "/v2/models/fake/ready"):
            response = service.client.get(path)
            assert response.status_code == 503
            assert response.json()["ready"] is False
            assert response.json()["error"] == "draining"


def test_stopped(service: Any) -> None:
    service.client.get("/v2/health/live")
    service.engine.stop(10.0)
    response = service.client.get("/v2/health/live")
    assert response.status_code == 503
    assert response.json() == {"live": False, "error": "stopped"}


def test_metadata(service: Any) -> None:
    server = service.client.get("/v2").json()
    assert server["name"] == "SegVLM"
    assert "statistics" not in server["extensions"]  # perf_analyzer would ask for them
    for path in ("/v2/models/fake", "/v2/models/fake/versions/1"):
        model = service.client.get(path).json()
        assert [each["name"] for each in model["inputs"]] == ["image", "expression"]
        assert [each["name"] for each in model["outputs"]] == ["mask", "score", "rle"]
        config = service.client.get(f"{path}/config").json()
        assert config["max_batch_size"] == 0
        assert [each["dims"] for each in config["output"]] == [[-1, -1, -1], [-1], [-1]]


def test_json_answer(service: Any, photo: Any) -> None:
    texts = ("the red one", "the blue ring")
    response = service.client.post(INFER, json=document(photo.encoded(), *texts, id="a b"))
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert "Inference-Header-Content-Length" not in response.headers
    assert "total;dur=" in response.headers["server-timing"]
    answer = response.json()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("a b", "fake", "1")
    outputs = {each["name"]: each for each in answer["outputs"]}
    masks = np.array(outputs["mask"]["data"]).reshape(outputs["mask"]["shape"])
    assert outputs["mask"]["shape"] == [2, 400, 640]
    for mask, truth, rle in zip(
        masks, (photo.red, photo.blue), outputs["rle"]["data"], strict=True
    ):
        assert (mask == coco.decode(json.loads(rle))).all()
        assert (mask & truth).sum() / (mask | truth).sum() > 0.7
    assert all(0.5 < score <= 1 for score in outputs["score"]["data"])
    assert service.metric("segvlm_requests_total", route=ROUTE, code="200") == 1


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/v2/models/other", 404, "there is no model 'other' here"),
        ("GET", "/v2/models/fake/versions/2/config", 404, "no version '2' of 'fake'"),
        ("GET", "/v2/models/other/ready", 404, "'other'"),
        ("POST", "/v2/models/other/infer", 404, "'other'"),
        ("POST", "/v2/models/fake/versions/2/infer", 404, "'2'"),
        ("GET", "/v2/models/fake/stats", 404, "nothing is at"),
        ("GET", "/v2/none", 404, "nothing is at"),
        ("GET", INFER, 405, "does not take GET"),
        ("POST", INFER, 400, "not valid JSON"),
    ],
)
def test_errors(service: Any, method: str, path: str, status: int, words: str) -> None:
    refused(service.client.request(method, path), status, words)


def test_errors_of_a_body(make_service: Callable[..., Any], small_photo: bytes) -> None:
    service = make_service(max_body_bytes=20_000)
    post = service.client.post
    refused(post(INFER, json={"inputs": []}), 422, "there is no 'image'")
    refused(post(INFER, json=document(b"no image", "a dog")), 400, "image format")
    refused(post(INFER, content=b"{}", headers={"Content-Encoding": "br"}), 415, "'br'")
    refused(post(INFER, content=b"{}", headers={"Content-Encoding": "gzip"}), 400, "not gzip")
    refused(post(INFER, content=bytes(20_001)), 413, "longer than 20,000 bytes")
    bomb = gzip.compress(bytes(10_000_000))
    assert len(bomb) < 20_000
    refused(
        post(INFER, content=bomb, headers={"Content-Encoding": "gzip"}),
        413,
        "inflates to more than 20,000 bytes",
    )
    slow = document(small_photo, "a dog", parameters={"timeout": 1})
    refused(post(INFER, json=slow), 504, "no answer within 1e-06 s")
    assert service.metric("segvlm_rejected_total", reason="deadline") == 1
    service.engine.drain()
    response = post(INFER, json=document(small_photo, "a dog"))
    refused(response, 503, "shutting down")
    assert int(response.headers["retry-after"]) >= 1


def test_masks_are_bounded(make_service: Callable[..., Any], small_photo: bytes) -> None:
    service = make_service(max_pixels=2 * 96 * 64)
    texts = ["one", "two", "three"]
    response = service.client.post(INFER, json=document(small_photo, *texts))
    refused(response, 413, "ask for 'rle' instead")
    rle = document(small_photo, *texts, outputs=[{"name": "rle"}])
    assert service.client.post(INFER, json=rle).status_code == 200
    assert service.client.post(INFER, json=document(small_photo, *texts[:2])).status_code == 200


def test_compressed_both_ways(service: Any, small_photo: bytes) -> None:
    image = struct.pack("<I", len(small_photo)) + small_photo
    request = document(b"", "the red one", parameters={"binary_data_output": True})
    del request["inputs"][0]["data"]
    request["inputs"][0]["parameters"] = {"binary_data_size": len(image)}
    header = json.dumps(request).encode()
    headers = {
        "Content-Encoding": "gzip",
        "Accept-Encoding": "deflate",
        "Inference-Header-Content-Length": str(len(header)),
    }
    response = service.client.post(INFER, content=gzip.compress(header + image), headers=headers)
    assert response.status_code == 200
    assert response.headers["content-encoding"] == "deflate"
    assert response.headers["vary"] == "Accept-Encoding"
    assert response.headers["content-type"] == "application/octet-stream"
    assert int(response.headers["content-length"]) < 96 * 64 / 4
    body = response.content  # the client has inflated it
    length = int(response.headers["Inference-Header-Content-Length"])
    (mask, score, rle) = json.loads(body[:length])["outputs"]
    sizes = [each["parameters"]["binary_data_size"] for each in (mask, score, rle)]
    assert sizes[:2] == [96 * 64, 4]
    assert len(body) == length + sum(sizes)
    plain = service.client.post(
        INFER, json=document(small_photo, "the red one"), headers={"Accept-Encoding": "identity"}
    )
    assert "content-encoding" not in plain.headers


def test_what_a_body_inflates_to_counts(make_service: Callable[..., Any]) -> None:
    service = make_service(max_body_bytes=100_000, max_buffered_bytes=100_000)
    small = gzip.compress(b'{"id": "' + bytes(90_000) + b'"}')
    large = gzip.compress(b'{"id": "' + bytes(99_950) + b'"}')
    headers = {"Content-Encoding": "gzip"}
    for _ in range(3):  # what was counted is given back
        response = service.client.post(INFER, content=small, headers=headers)
        refused(response, 400, "not valid JSON")
    response = service.client.post(INFER, content=large, headers=headers)
    refused(response, 503, "try again after")
    assert response.headers["retry-after"] == "1"


def test_an_answer_counts(make_service: Callable[..., Any], small_photo: bytes) -> None:
    size = len(json.dumps(document(small_photo, "one")))
    service = make_service(max_body_bytes=1000, max_buffered_bytes=size + 2000)
    plain = {"Accept-Encoding": "identity"}
    response = service.client.post(INFER, json=document(small_photo, "one"), headers=plain)
    refused(response, 503, "try again after")
    outputs = [{"name": "score"}]
    for _ in range(3):
        request = document(small_photo, "one", outputs=outputs)
        assert service.client.post(INFER, json=request).status_code == 200


def test_the_openapi_document(service: Any) -> None:
    described = service.client.get("/openapi.json").json()
    paths = {path for path in described["paths"] if path.startswith("/v2")}
    model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
    of_models = {f"{base}{end}" for base in (model, version) for end in ("", "/ready", "/config")}
    infers = {f"{model}/infer", f"{version}/infer"}
    assert paths == {"/v2", "/v2/health/live", "/v2/health/ready", *of_models, *infers}
    for path in infers:
        operation = described["paths"][path]["post"]
        assert {"200", "400", "404", "413", "415", "422", "503", "504"} <= set(
            operation["responses"]
        )
        for status, response in operation["responses"].items():
            if status != "200":
                (schema,) = (each["schema"] for each in response["content"].values())
                assert schema == {"$ref": "#/components/schemas/InferError"}
        names = [parameter["name"] for parameter in operation["parameters"]]
        assert "Inference-Header-Content-Length" in names
        assert "application/octet-stream" in operation["requestBody"]["content"]
    assert "422" not in described["paths"]["/v2/models/{model}"]["get"]["responses"]
