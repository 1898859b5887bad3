"""Roboflow's protocol over HTTP: its exact shapes, and what is refused."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from pycocotools import mask as coco_mask

from model.calibration import ScoreMap

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

URL = "/sam3/concept_segment"
RED, BLUE = "the red box", "a blue ring"


def ask(service: Any, photo: bytes, *texts: str, **members: Any) -> httpx.Response:
    """As the client sends it, whose key and model are not ours."""
    document = {
        "api_key": "none",
        "model_id": "sam3/sam3_final",
        "image": {"type": "base64", "value": base64.b64encode(photo).decode()},
        "prompts": [{"type": "text", "text": text} for text in texts],
        **members,
    }
    return service.client.post(f"{URL}?api_key=none", json=document)


def test_answer_in_full(service: Any, photo: Any) -> None:
    response = ask(service, photo.encoded(), RED, BLUE, format="rle", output_prob_thresh=0.5)
    assert response.status_code == 200, response.text
    answer = response.json()
    assert answer.keys() == {"prompt_results", "time"}
    assert 0 < answer["time"] < 60
    for index, (result, text) in enumerate(zip(answer["prompt_results"], (RED, BLUE), strict=True)):
        echo = {"prompt_index": index, "type": "text", "text": text, "num_boxes": 0}
        assert result.keys() == {"prompt_index", "echo", "predictions"}
        assert result["prompt_index"] == index and result["echo"] == echo
        (prediction,) = result["predictions"]
        assert prediction.keys() == {"masks", "confidence", "format"}
        assert prediction["format"] == "rle"
        assert coco_mask.decode(prediction["masks"]).shape == (400, 640)


@pytest.mark.parametrize("format_name", ["polygon", "json", None])
def test_polygons_are_the_default(service: Any, photo: Any, format_name: str | None) -> None:
    members = {} if format_name is None else {"format": format_name}
    (result,) = ask(service, photo.encoded(), RED, **members).json()["prompt_results"]
    (prediction,) = result["predictions"]
    assert prediction["format"] == "polygon"
    (ring,) = prediction["masks"]
    points = np.array(ring)
    rows, columns = np.nonzero(photo.red)
    assert np.abs(points.min(axis=0) - (columns.min(), rows.min())).max() <= 8
    assert np.abs(points.max(axis=0) - (columns.max(), rows.max())).max() <= 8


def test_confidence_threshold_of_the_request_and_of_a_prompt(service: Any, photo: Any) -> None:
    def found(*own: float | None, least: float | None) -> list[int]:
        prompts = [{"text": RED, "output_prob_thresh": value} for value in own]
        response = ask(service, photo.encoded(), prompts=prompts, output_prob_thresh=least)
        return [len(result["predictions"]) for result in response.json()["prompt_results"]]

    (result,) = ask(service, photo.encoded(), RED).json()["prompt_results"]
    score = result["predictions"][0]["confidence"]
    below, above = score - 0.01, score + 0.01
    assert found(None, below, above, least=None) == [1, 1, 0]
    assert found(None, below, above, least=above) == [0, 1, 0]
    assert found(None, below, above, least=below) == [1, 1, 0]


def test_clients_own_limit_is_not_one_of_the_expected_iou(
    service: Any, photo: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask that is sure pixel by pixel, of a model whose masks are seldom right."""
    form = {"files": {"image": photo.encoded()}, "data": {"expression": RED}}

    def score() -> float:
        return float(service.client.post("/segment", **form).json()["results"][0]["score"])

    sure = score()
    spec = replace(service.engine.spec, score_map=ScoreMap(((0.0, 0.0), (1.0, 0.4))))
    monkeypatch.setattr(type(service.engine), "spec", spec)
    assert score() < 0.5 < sure
    for members in ({}, {"output_prob_thresh": 0.5}):
        (result,) = ask(service, photo.encoded(), RED, **members).json()["prompt_results"]
        (prediction,) = result["predictions"]
        assert prediction["confidence"] == sure


def test_nothing_found_is_no_prediction_whatever_the_limit(service: Any, photo: Any) -> None:
    answer = ask(service, photo.encoded(), "the green one", output_prob_thresh=0).json()
    assert answer["prompt_results"][0]["predictions"] == []


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"prompts": []}, "prompts"),
        ({"prompts": [{"type": "text"}]}, "prompts.0: empty"),
        ({"prompts": [{"text": "a"}] * 33}, "33 were sent, at most 32"),
        ({"prompts": [{"text": "a", "boxes": [{"x": 1}]}]}, "prompts.0.boxes: boxes are not"),
        ({"prompts": [{"type": "visual", "text": "a"}]}, "prompts.0.type: 'visual'"),
        ({"image": {"type": "url", "value": "https://host/a.jpg"}}, "does not fetch"),
        ({"image": {"type": "numpy", "value": "x"}}, "image.type: 'numpy'"),
        ({"image": {"type": "base64", "value": "%"}}, "image.value: not valid base64"),
        ({"format": "binary"}, "format"),
        ({"nms_iou_threshold": 0.5}, "not supported; there is one mask"),
        ({"output_prob_thresh": 1.5}, "output_prob_thresh"),
    ],
)
def test_what_is_refused(
    service: Any, small_photo: bytes, members: dict[str, Any], words: str
) -> None:
    response = ask(service, small_photo, RED, **members)
    assert response.status_code == 422, response.text
    assert response.headers["content-type"] == "application/json"
    assert response.json().keys() == {"message", "error_type"}
    assert words in response.json()["message"]
    assert service.metric("segvlm_rejected_total", reason="invalid_field") == 1
    assert service.backend.batches == []


def test_bodies_that_are_refused(service: Any) -> None:
    assert service.client.post(URL, content=b"{").status_code == 400
    assert ask(service, b"not an image", RED).json()["error_type"] == "bad_image"


def test_overload_says_when_to_come_back(service: Any, small_photo: bytes) -> None:
    assert service.client
    service.engine.drain()
    response = ask(service, small_photo, RED)
    assert response.status_code == 503 and response.json()["error_type"] == "draining"
    assert int(response.headers["retry-after"]) >= 1
