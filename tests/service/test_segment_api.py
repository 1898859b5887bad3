"""`POST /segment`: every way to ask and every form of answer, on the fake backend."""

from __future__ import annotations

import base64
from collections.abc import Callable
from io import BytesIO
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

Mask = NDArray[np.bool_]
RED, BLUE = "the red rectangle", "a blue ring"


@pytest.fixture
def sharp(make_service: Callable[..., Any]) -> Any:
    """A service whose model sees at the default model's size."""
    return make_service(image_size=320)


def ask(service: Any, image: bytes, *expressions: str, **fields: Any) -> httpx.Response:
    """Post a form; keyword arguments are options in the form, `headers` are headers."""
    headers = fields.pop("headers", {})
    return service.client.post(
        "/segment",
        files={"image": ("photo.jpg", image)},
        data={"expression": list(expressions), **fields},
        headers=headers,
    )


def ask_json(service: Any, image: bytes, *expressions: str, **fields: Any) -> httpx.Response:
    document = {"image": base64.b64encode(image).decode(), "expressions": list(expressions)}
    return service.client.post("/segment", json={**document, **fields})


def iou(first: Mask, second: Mask) -> float:
    return float((first & second).sum() / (first | second).sum())


def decode_rle(mask: dict[str, Any]) -> Mask:
    return coco_mask.decode(mask).astype(bool)


def decode_png(mask: dict[str, Any]) -> Mask:
    return np.asarray(Image.open(BytesIO(base64.b64decode(mask["data"]))).convert("1"))


def decode_polygons(mask: dict[str, Any], height: int, width: int) -> Mask:
    """Drawn four times as large, so that Pillow's drawing of the border matters less."""
    canvas = Image.new("1", (4 * width, 4 * height))
    draw = ImageDraw.Draw(canvas)
    for region in mask["polygons"]:
        draw.polygon([(4 * x, 4 * y) for x, y in region["exterior"]], fill=1)
        for hole in region["holes"]:
            draw.polygon([(4 * x, 4 * y) for x, y in hole], fill=0)
    return np.asarray(canvas)[1::4, 1::4]


def test_rle_answer_in_full(sharp: Any, photo: Any) -> None:
    response = ask(sharp, photo.encoded(), RED, BLUE)
    assert response.status_code == 200
    answer = response.json()
    assert answer["model"] == {"name": "fake", "version": "1"}
    assert answer["image"] == {"width": 640, "height": 400}
    for result, expression, truth in zip(
        answer["results"], (RED, BLUE), (photo.red, photo.blue), strict=True
    ):
        mask = decode_rle(result["mask"])
        assert mask.shape == (400, 640)
        assert iou(mask, truth) > 0.9
        rows, columns = np.nonzero(mask)
        assert result["expression"] == expression
        assert result["truncated"] is False
        assert result["area"] == mask.sum()
        assert result["bbox"] == [
            columns.min(),
            rows.min(),
            columns.max() + 1,
            rows.max() + 1,
        ]
        assert 0.5 < result["score"] <= 1
        assert "probability" not in result


def test_all_forms_hold_the_same_mask(sharp: Any, photo: Any) -> None:
    image = photo.encoded()
    results = {
        form: ask(sharp, image, BLUE, format=form).json()["results"][0]
        for form in ("rle", "png", "polygons", "none")
    }
    mask = decode_rle(results["rle"]["mask"])
    np.testing.assert_array_equal(decode_png(results["png"]["mask"]), mask)
    assert iou(decode_polygons(results["polygons"]["mask"], 400, 640), mask) >= 0.98
    assert len(results["polygons"]["mask"]["polygons"][0]["holes"]) == 1
    assert results["none"]["mask"] is None
    for result in results.values():
        assert (result["area"], result["bbox"]) == (mask.sum(), results["rle"]["bbox"])


def test_accept_png_answers_the_mask_itself(sharp: Any, photo: Any) -> None:
    response = ask(sharp, photo.encoded(), RED, headers={"Accept": "image/png"})
    assert response.headers["content-type"] == "image/png"
    assert "Accept" in response.headers["vary"]
    mask = decode_rle(ask(sharp, photo.encoded(), RED).json()["results"][0]["mask"])
    np.testing.assert_array_equal(np.asarray(Image.open(BytesIO(response.content))), mask)


def test_accept_png_with_two_expressions_says_what_to_do(service: Any, photo: Any) -> None:
    response = ask(service, photo.encoded(), RED, BLUE, headers={"Accept": "image/png"})
    assert response.status_code == 406
    assert "format=overlay" in response.json()["detail"]


@pytest.mark.parametrize("media_type", ["image/png", "image/jpeg"])
def test_overlay_is_the_photo_with_the_masks_drawn(sharp: Any, photo: Any, media_type: str) -> None:
    response = ask(
        sharp, photo.encoded(), RED, BLUE, format="overlay", headers={"Accept": media_type}
    )
    assert response.headers["content-type"] == media_type
    drawn = np.asarray(Image.open(BytesIO(response.content)).convert("RGB")).astype(int)
    original = np.asarray(photo.picture).astype(int)
    change = np.abs(drawn - original).max(axis=-1)
    assert np.median(change[photo.red]) > 20
    assert np.median(change[photo.blue]) > 20
    assert np.median(change[~photo.red & ~photo.blue]) <= 3  # JPEG is not exact


def test_json_and_form_are_equal(sharp: Any, photo: Any) -> None:
    image = photo.encoded("JPEG", quality=90)
    form = ask(sharp, image, RED, BLUE, threshold="0.3").json()
    body = ask_json(sharp, image, RED, BLUE, threshold=0.3).json()
    query = sharp.client.post(
        "/segment?threshold=0.3",
        files={"image": image},
        data={"expression": [RED, BLUE]},
    ).json()
    for answer in (form, body, query):
        del answer["timings"]
    assert form == body == query


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_coordinates_are_those_of_the_photo_as_seen(
    sharp: Any, photo: Any, orientation: int
) -> None:
    """The camera stored the picture turned; the answer is in upright pixels."""
    turn = {
        3: Image.Transpose.ROTATE_180,
        6: Image.Transpose.ROTATE_90,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = BytesIO()
    photo.picture.transpose(turn).save(stored, "JPEG", quality=95, exif=exif)
    answer = ask(sharp, stored.getvalue(), RED, BLUE).json()
    assert answer["image"] == {"width": 640, "height": 400}
    assert iou(decode_rle(answer["results"][0]["mask"]), photo.red) > 0.9
    assert iou(decode_rle(answer["results"][1]["mask"]), photo.blue) > 0.9
    overlay = ask(sharp, stored.getvalue(), RED, format="overlay")
    assert Image.open(BytesIO(overlay.content)).size == (640, 400)


def test_long_expression_is_flagged_as_truncated(service: Any, small_photo: bytes) -> None:
    long = " ".join(["very"] * 20) + " red thing"
    answer = ask(service, small_photo, "the red thing", long).json()
    assert [result["truncated"] for result in answer["results"]] == [False, True]
    assert answer["results"][1]["expression"] == long


def test_threshold_is_strict_and_shrinks_the_mask(service: Any, small_photo: bytes) -> None:
    areas = [
        ask(service, small_photo, RED, threshold=str(threshold)).json()["results"][0]["area"]
        for threshold in (0, 0.3, 0.7, 1)
    ]
    assert areas == sorted(areas, reverse=True)
    assert areas[1] > areas[2] > 0
    assert areas[3] == 0


def test_empty_mask(service: Any, small_photo: bytes) -> None:
    for form in ("rle", "png", "polygons"):
        result = ask(service, small_photo, RED, threshold="1", format=form).json()["results"][0]
        assert (result["score"], result["area"], result["bbox"]) == (0.0, 0, None)
        assert result["mask"]["format"] == form
    picture = ask(service, small_photo, RED, threshold="1", headers={"Accept": "image/png"})
    assert not np.asarray(Image.open(BytesIO(picture.content))).any()
    overlay = ask(service, small_photo, RED, threshold="1", format="overlay")
    np.testing.assert_array_equal(
        np.asarray(Image.open(BytesIO(overlay.content))),
        np.asarray(Image.open(BytesIO(small_photo))),
    )


def test_probability_agrees_with_mask_and_score(sharp: Any, photo: Any) -> None:
    result = ask(sharp, photo.encoded(), RED, include_probability="true").json()["results"][0]
    encoded = base64.b64decode(result["probability"]["data"])
    probability = np.asarray(Image.open(BytesIO(encoded))) / 255
    mask = decode_rle(result["mask"])
    assert probability.shape == mask.shape
    clear = np.abs(probability - 0.5) > 1 / 255
    np.testing.assert_array_equal((probability > 0.5)[clear], mask[clear])
    assert result["score"] == pytest.approx(probability[mask].mean(), abs=2 / 255)


def test_timings_are_in_the_body_and_in_the_header(service: Any, small_photo: bytes) -> None:
    response = ask(service, small_photo, RED)
    timings = response.json()["timings"]
    stages = ["decode", "preprocess", "queue", "inference", "postprocess", "total"]
    assert list(timings) == stages
    assert all(timings[stage] >= 0 for stage in stages)
    assert sum(timings[stage] for stage in stages[:-1]) <= timings["total"] + 0.01
    header = dict(part.split(";dur=") for part in response.headers["server-timing"].split(", "))
    assert {stage: float(value) for stage, value in header.items()} == timings


def test_image_is_encoded_once_for_all_its_expressions(
    make_service: Callable[..., Any], small_photo: bytes
) -> None:
    """Also without a cache, and when the expressions need several batches."""
    service = make_service(image_cache_bytes=0, max_batch_size=4)
    answer = ask(service, small_photo, *(f"thing {number}" for number in range(10)))
    assert len(answer.json()["results"]) == 10
    assert service.backend.images_encoded == 1
    assert service.backend.batches == [4, 4, 2]


def test_same_image_again_is_found_in_the_cache(service: Any, small_photo: bytes) -> None:
    first = ask(service, small_photo, RED).json()
    again = ask_json(service, small_photo, RED, BLUE).json()
    assert again["results"][0] == first["results"][0]
    assert service.backend.images_encoded == 1
    assert service.backend.texts_encoded == 2
    assert service.metric("segvlm_cache_hits_total", cache="image") == 1
    assert service.metric("segvlm_cache_misses_total", cache="image") == 1
    assert service.metric("segvlm_cache_hits_total", cache="text") == 1


def test_cache_knows_images_by_content_and_not_by_name(service: Any, photo: Any) -> None:
    """The same bytes hit under another name and in JSON, and are not even decoded; others miss."""
    first, url = photo.encoded("PNG"), "/segment"
    for name in ("a.png", "b.jpg"):
        files = {"image": (name, first)}
        assert service.client.post(url, files=files, data={"expression": RED}).status_code == 200
    ask_json(service, first, BLUE)
    assert service.backend.images_encoded == 1
    assert service.metric("segvlm_decode_seconds_count") == 1
    other = photo.picture.copy()
    other.paste((0, 0, 0), (0, 0, 20, 20))
    buffer = BytesIO()
    other.save(buffer, "PNG")
    service.client.post(
        url, files={"image": ("a.png", buffer.getvalue())}, data={"expression": RED}
    )
    assert service.backend.images_encoded == 2


def test_answer_from_the_cache_is_the_same_in_every_form(sharp: Any, photo: Any) -> None:
    """The photo's own size must come back with features whose pixels nobody has any more."""
    image = photo.encoded("PNG")
    for form in ("rle", "png", "polygons", "overlay"):
        first, again = (ask(sharp, image, RED, BLUE, format=form) for _ in range(2))
        if form == "overlay":
            assert first.content == again.content
        else:
            assert first.json()["results"] == again.json()["results"]
            assert first.json()["image"] == again.json()["image"]
    assert sharp.backend.images_encoded == 1


@pytest.mark.parametrize("given", ["abc-123", "a" * 128])
def test_request_id_is_echoed(service: Any, small_photo: bytes, given: str) -> None:
    response = ask(service, small_photo, RED, headers={"X-Request-Id": given})
    assert response.headers["x-request-id"] == given
    problem = ask(service, b"no image", RED, headers={"X-Request-Id": given})
    assert problem.json()["request_id"] == given


@pytest.mark.parametrize("given", ["", "a" * 129, "with space"])
def test_request_id_is_made_up_when_missing_or_odd(
    service: Any, small_photo: bytes, given: str
) -> None:
    ids = {
        ask(service, small_photo, RED, headers={"X-Request-Id": given}).headers["x-request-id"]
        for _ in range(2)
    }
    assert len(ids) == 2
    assert given not in ids


@pytest.mark.parametrize("size", [(1, 1), (3, 700), (700, 3), (641, 399)])
def test_odd_sizes_answer_in_their_own_pixels(service: Any, size: tuple[int, int]) -> None:
    buffer = BytesIO()
    Image.new("RGB", size, (220, 30, 30)).save(buffer, "PNG")
    answer = ask(service, buffer.getvalue(), RED).json()
    assert answer["image"] == {"width": size[0], "height": size[1]}
    mask = decode_rle(answer["results"][0]["mask"])
    assert mask.shape == (size[1], size[0])
    # Of a line the model sees less than one cell of its grid; of the others it sees red only.
    assert mask.all() or 3 in size
