"""Label Studio's protocol over HTTP: its five routes, labelling configurations, what is refused."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Callable
from io import BytesIO
from typing import Any

import httpx2 as httpx
import pytest

from service.errors import InvalidField
from service.label_studio_config import read_brush

CONFIG = """
<View><Image name="photo" value="$picture"/>
<BrushLabels name="mask" toName="photo"><Label value="Box"/><Label value="Red Box" alias="rb"/>
</BrushLabels><TextArea name="prompt" toName="photo"/></View>
"""
PLAIN = '<View><Image name="i" value="$picture"/><Brush name="b" toName="i"/></View>'
PATIENCE = 60.0


def predict(
    service: Any, *images: Any, typed: Any = None, config: str = CONFIG, key: str = "picture"
) -> httpx.Response:
    """Ask as Label Studio does; bytes become data URLs."""
    tasks = [
        {"id": number, "data": {key: image if not isinstance(image, bytes) else data_url(image)}}
        for number, image in enumerate(images)
    ]
    regions = [{"type": "textarea", "value": {"text": typed}}] if typed else []
    context = {"result": [*regions, {"type": "choices", "value": {"choices": ["x"]}}]}
    params = {"login": None, "password": None, "context": context if typed else None}
    document = {"tasks": tasks, "label_config": config, "params": params, "project": "1.1"}
    return service.client.post("/label-studio/predict", json=document)


def data_url(image: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(image).decode()}"


def test_region_in_full(service: Any, photo: Any) -> None:
    response = predict(service, photo.encoded(), typed=["the red thing"])
    assert response.status_code == 200, response.text
    (prediction,) = response.json()["results"]
    (region,) = prediction["result"]
    value, score = region.pop("value"), region.pop("score")
    assert prediction["model_version"] == "fake-1"
    assert prediction["score"] == score > 0.8
    assert region.pop("id")
    assert region == {
        "from_name": "mask",
        "to_name": "photo",
        "type": "brushlabels",
        "origin": "prediction",
        "original_width": 640,
        "original_height": 400,
        "image_rotation": 0,
        "meta": {"text": ["the red thing"]},
    }
    assert value.keys() == {"format", "rle", "brushlabels"}
    assert value["format"] == "rle" and value["brushlabels"] == ["Box"]
    assert all(0 <= byte <= 255 for byte in value["rle"])


@pytest.mark.parametrize(
    ("typed", "labels"),
    [
        ("a BOX", ["Box"]),
        ("the big red box there", ["rb"]),  # the longest label that is named, by its alias
        ("boxes", ["Box"]),  # named by none: the first
        (["a box", "the red box", "a box"], ["Box", "rb"]),
        (None, ["Box", "rb"]),  # nothing typed: each label
    ],
)
def test_which_label_a_region_gets(service: Any, photo: Any, typed: Any, labels: list[str]) -> None:
    (prediction,) = predict(service, photo.encoded(), typed=typed).json()["results"]
    found = [region["value"]["brushlabels"][0] for region in prediction["result"]]
    assert found == labels


def test_brush_without_labels(service: Any, photo: Any) -> None:
    response = predict(service, photo.encoded(), typed="the red box", config=PLAIN)
    (region,) = response.json()["results"][0]["result"]
    assert region["type"] == "brush" and region["from_name"] == "b"
    assert region["value"].keys() == {"format", "rle"}


def test_several_tasks_are_answered_in_their_order(service: Any, photo: Any) -> None:
    sizes = [(64, 48), (96, 64), (30, 20)]
    images = [photo.picture.resize(size) for size in sizes]
    response = predict(service, *map(encoded, images), typed="the red box")
    results = response.json()["results"]
    assert [
        (each["result"][0]["original_width"], each["result"][0]["original_height"])
        for each in results
    ] == sizes
    assert service.backend.images_encoded == 3
    assert service.metric("segvlm_requests_total", route="/label-studio/predict", code="200") == 1
    assert service.engine.images == 0


def encoded(picture: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_tasks_take_one_place_after_another(
    make_service: Callable[..., Any], small_photo: bytes
) -> None:
    service = make_service(max_queue=1)
    assert predict(service, *[small_photo] * 5, typed="x").status_code == 200


@pytest.mark.parametrize(
    ("request_parts", "words"),
    [
        ({"images": ["https://host/a.jpg"]}, "tasks.0.data.picture: is a URL"),
        ({"images": ["s3://bucket/a.jpg"]}, "tasks.0.data.picture: is a URL"),
        ({"images": ["/data/upload/1/a.jpg"]}, "tasks.0.data.picture: is a path"),
        ({"images": ["data:image/png;base64,%"]}, "tasks.0.data.picture: not valid base64"),
        ({"images": [5]}, "tasks.0.data.picture: missing or no text"),
        ({"images": ["x"], "key": "image"}, "tasks.0.data.picture: missing or no text"),
        ({"images": []}, "tasks"),
        ({"images": ["x"], "config": PLAIN}, "nothing to find"),
        ({"images": ["x"], "config": "<View/>"}, "label_config: has no brush for an image"),
        ({"images": ["x"], "config": "<View>"}, "label_config: not valid XML"),
        ({"images": ["x"], "typed": "a" * 257}, "text.0: has 257 characters"),
        ({"images": ["x"], "typed": " "}, "text.0: empty"),
    ],
)
def test_what_is_refused(service: Any, request_parts: dict[str, Any], words: str) -> None:
    response = predict(service, *request_parts.pop("images"), **request_parts)
    assert response.status_code == 422, response.text
    assert response.json().keys() == {"error", "error_type"}
    assert words in response.json()["error"]
    assert service.metric("segvlm_rejected_total", reason="invalid_field") == 1


def test_a_bad_image_among_several_is_told(service: Any, small_photo: bytes) -> None:
    response = predict(service, small_photo, b"not an image", small_photo, typed="x")
    assert response.status_code == 400 and response.json()["error_type"] == "bad_image"
    assert response.json()["error"].startswith("tasks.1: ")
    assert service.engine.images == 0


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ('<!DOCTYPE v [<!ENTITY a "aaaa">]><View>&a;</View>', "declares a document type"),
        (CONFIG.replace("$picture", "https://host/a.jpg"), "not a field of the task"),
        (CONFIG.replace('toName="photo"', 'toName="text"'), "has no brush for an image"),
        ("<View>" + " " * 1_000_000 + "</View>", "at most 1000000 are accepted"),
    ],
)
def test_configurations_that_are_refused(config: str, words: str) -> None:
    with pytest.raises(InvalidField, match=words.replace("$", r"\$")):
        read_brush(config, "label_config")


def test_setup_accepts_a_new_project_and_one_with_a_brush(service: Any) -> None:
    for config in (CONFIG, "<View></View>", "", "<View><!-- empty --></View>"):
        response = service.client.post(
            "/label-studio/setup",
            json={"project": "1.1", "schema": config, "hostname": "http://h", "access_token": "t"},
        )
        assert response.status_code == 200, response.text
        assert response.json() == {"model_version": "fake-1"}
    assert service.client.get("/label-studio/versions").json() == {"versions": ["fake-1"]}


def test_setup_says_what_is_missing(service: Any) -> None:
    config = '<View><Image name="i" value="$i"/><RectangleLabels name="r" toName="i"/></View>'
    response = service.client.post("/label-studio/setup", json={"schema": config})
    assert response.status_code == 422
    assert "<BrushLabels" in response.json()["error"]


def test_webhook(service: Any) -> None:
    event = {"action": "ANNOTATION_CREATED", "project": {"id": 1}}
    response = service.client.post("/label-studio/webhook", json=event)
    assert (response.status_code, response.json()) == (201, {"status": "ok"})
    assert service.client.post("/label-studio/webhook", content=b"{").status_code == 400


def test_health_is_answered_at_once_by_a_busy_service(service: Any, small_photo: bytes) -> None:
    assert service.client
    service.backend.gate.clear()
    answers: list[httpx.Response] = []
    asking = threading.Thread(
        target=lambda: answers.append(predict(service, small_photo, typed="x"))
    )
    asking.start()
    assert service.backend.entered.wait(PATIENCE)
    asked = time.monotonic()
    assert service.client.get("/label-studio/health").json() == {"status": "UP"}
    assert time.monotonic() - asked < 1
    service.backend.gate.set()
    asking.join(PATIENCE)
    assert answers[0].status_code == 200


def test_health_while_draining(service: Any, small_photo: bytes) -> None:
    assert service.client
    service.engine.drain()
    response = service.client.get("/label-studio/health")
    assert (response.status_code, response.json()) == (503, {"status": "DOWN"})
    refused = predict(service, small_photo, typed="x")
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1
