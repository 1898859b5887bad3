"""The client against a live service, and against servers that misbehave in every way it handles."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.client import (
    AsyncClient,
    Client,
    MalformedAnswer,
    Retry,
    ServiceRefused,
    Unreachable,
    coco_document,
)
from service.schemas import ImageInfo, ModelInfo, RleMask, SegmentResponse, SegmentResult, Timings

PATIENCE = 30.0
NOTHING = dict.fromkeys(("decode", "preprocess", "queue", "inference", "postprocess", "total"), 0.0)
ANSWER = SegmentResponse(
    model=ModelInfo(name="m", version="1"),
    image=ImageInfo(width=2, height=2),
    results=[
        SegmentResult(
            expression="x", truncated=False, score=0.5, area=4, bbox=(0, 0, 2, 2),
            mask=RleMask(size=[2, 2], counts="04"),
        )
    ],
    timings=Timings(**NOTHING),
).model_dump(mode="json")  # fmt: skip
PROBLEM = {"reason": "queue_full", "detail": "too many images are waiting"}


class Script:
    """An httpx transport that answers by a list, and remembers what it was asked."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.bodies: list[bytes] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(request.read())
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def good() -> httpx.Response:
    return httpx.Response(200, json=ANSWER)


def full(after: str | None = "7") -> httpx.Response:
    headers = {"X-Request-Id": "id-1"} | ({"Retry-After": after} if after else {})
    return httpx.Response(503, json=PROBLEM, headers=headers)


def ask(script: Script, **options: Any) -> tuple[Any, list[float]]:
    pauses: list[float] = []
    transport = httpx.MockTransport(script)
    with Client("http://service", transport=transport, sleep=pauses.append, **options) as client:
        return client.segment(b"an image", ["x"]), pauses


# -- a live service ---------------------------------------------------------------------------


def test_masks_are_arrays_of_the_photos_size(
    make_live_service: Callable[..., Any], photo: Any
) -> None:
    live = make_live_service()
    with Client(live.url) as client:
        answer = client.segment(
            photo.encoded(), ["the red rectangle", "the blue ring"], include_probability=True
        )
        inputs = (photo.picture, np.asarray(photo.picture))
        others = [client.segment(image, ["the red rectangle"]) for image in inputs]
    red, blue = answer.results
    assert red.mask.dtype == bool and red.mask.shape == (400, 640) == (answer.height, answer.width)
    for found, truth in ((red, photo.red), (blue, photo.blue)):
        assert (found.mask & truth).sum() / (found.mask | truth).sum() > 0.75  # the fake is coarse
        assert found.area == found.mask.sum()
    assert red.probability is not None and red.probability.dtype == np.float32
    threshold = live.service.engine.spec.threshold
    assert ((red.probability > threshold) == red.mask).mean() > 0.999
    for other in others:
        np.testing.assert_array_equal(other.results[0].mask, red.mask)


def test_threshold_reaches_the_service(make_live_service: Callable[..., Any], photo: Any) -> None:
    with Client(make_live_service().url) as client:
        areas = [
            client.segment(photo.encoded(), ["red"], threshold=at).results[0].area
            for at in (0.05, 0.95)
        ]
    assert areas[0] > areas[1]


def test_a_refusal_says_why(make_live_service: Callable[..., Any], photo: Any) -> None:
    with Client(make_live_service().url) as client:
        with pytest.raises(ServiceRefused, match="image") as told:
            client.segment(b"no image", ["red"])
        assert (told.value.status, told.value.reason) == (400, "bad_image")
        assert told.value.request_id
        with pytest.raises(ServiceRefused) as told:
            client.segment(photo.encoded(), [" "])
        assert told.value.status == 422
        with pytest.raises(ValueError, match="list"):
            client.segment(photo.encoded(), "red")


@pytest.mark.parametrize("concurrency", [1, 3])
def test_many_images_keep_their_order_and_their_faults(
    make_live_service: Callable[..., Any], photo: Any, tmp_path: Path, concurrency: int
) -> None:
    good_bytes = photo.encoded()
    images: list[Any] = [good_bytes, b"no image", tmp_path / "missing.jpg", good_bytes]
    with Client(make_live_service().url) as client:
        outcomes = list(client.segment_many(images, ["red"], concurrency=concurrency))
    assert [each.index for each in outcomes] == [0, 1, 2, 3]
    assert [each.answer is not None for each in outcomes] == [True, False, False, True]
    assert isinstance(outcomes[1].error, ServiceRefused)
    assert isinstance(outcomes[2].error, FileNotFoundError)


def test_the_loops_client_answers_the_same(
    make_live_service: Callable[..., Any], photo: Any
) -> None:
    url = make_live_service().url

    async def both() -> tuple[Any, list[Any]]:
        async with AsyncClient(url) as client:
            one = await client.segment(photo.encoded(), ["red"])
            images = [photo.encoded(), b"no image", photo.encoded()]
            many = [each async for each in client.segment_many(images, ["red"], concurrency=2)]
            return one, many

    one, many = asyncio.run(both())
    with Client(url) as client:
        assert client.segment(photo.encoded(), ["red"]).results[0].rle == one.results[0].rle
    assert [each.answer is not None for each in many] == [True, False, True]


def test_coco_json_is_read_by_its_own_library(
    make_live_service: Callable[..., Any], photo: Any
) -> None:
    from pycocotools import mask as coco_mask

    with Client(make_live_service().url) as client:
        answer = client.segment(photo.encoded(), ["red", "blue"])
    document = coco_document([("a.png", answer), ("b.png", answer)])
    assert [image["file_name"] for image in document["images"]] == ["a.png", "b.png"]
    assert [category["name"] for category in document["categories"]] == ["red", "blue"]
    first = document["annotations"][0]
    np.testing.assert_array_equal(
        coco_mask.decode(first["segmentation"]).astype(bool), answer.results[0].mask
    )
    assert first["area"] == answer.results[0].mask.sum()
    rows, columns = np.nonzero(answer.results[0].mask)
    assert first["bbox"] == [
        columns.min(), rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1
    ]  # fmt: skip


# -- again or not -----------------------------------------------------------------------------


def test_retry_after_is_honoured_and_the_body_sent_again() -> None:
    script = Script(full("7"), full("2"), good())
    answer, pauses = ask(script)
    assert answer.results[0].mask.all()
    assert pauses == [7.0, 2.0]
    assert len(set(map(len, script.bodies))) == 1
    assert all(b"an image" in body for body in script.bodies)


def test_without_it_the_pauses_double() -> None:
    retry = Retry(first_pause=1.0, jitter=lambda: 0.5)
    _, pauses = ask(
        Script(full(None), httpx.ConnectError("refused"), full(None), good()), retry=retry
    )
    assert pauses == [1.0, 2.0, 4.0]


@pytest.mark.parametrize(
    "fault",
    [httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.RemoteProtocolError("cut")],
)
def test_a_broken_connection_is_tried_again(fault: Exception) -> None:
    answer, pauses = ask(Script(fault, good()))
    assert answer.model == "m" and len(pauses) == 1


@pytest.mark.parametrize("status", [400, 401, 413, 422, 500, 504])
def test_what_will_not_change_is_not_asked_again(status: int) -> None:
    script = Script(httpx.Response(status, json=PROBLEM))
    with pytest.raises(ServiceRefused) as told:
        ask(script)
    assert told.value.status == status and told.value.detail == PROBLEM["detail"]


def test_it_gives_up_after_its_attempts_and_its_time() -> None:
    with pytest.raises(ServiceRefused) as told:
        ask(Script(*(full("1") for _ in range(3))), retry=Retry(attempts=3))
    assert told.value.status == 503 and told.value.request_id == "id-1"
    with pytest.raises(ServiceRefused):  # coming back would take longer than the caller waits
        ask(Script(full("61")), retry=Retry(longest=60))
    with pytest.raises(Unreachable, match="refused"):
        ask(Script(httpx.ConnectError("refused")), retry=Retry(attempts=1))


def test_time_that_is_up_is_up() -> None:
    with pytest.raises(Unreachable):
        ask(Script(httpx.ReadTimeout("30 s")))


@pytest.mark.parametrize(
    "answer",
    [
        httpx.Response(200, text="<html>hello"),
        httpx.Response(200, json=[]),
        httpx.Response(200, json={**ANSWER, "results": [{}]}),
    ],
)
def test_another_server_is_told_apart(answer: httpx.Response) -> None:
    with pytest.raises(MalformedAnswer):
        ask(Script(answer))


def test_a_proxys_page_is_an_error_in_words() -> None:
    with pytest.raises(ServiceRefused, match="403: Forbidden"):
        ask(Script(httpx.Response(403, text="<html>")))


def test_the_service_is_told_the_time_and_the_key() -> None:
    seen: list[httpx.Headers] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers)
        return good()

    transport = httpx.MockTransport(answer)
    with Client("http://service/behind", api_key="k", timeout=2.5, transport=transport) as client:
        client.segment(b"", ["x"])
    assert seen[0]["Authorization"] == "Bearer k"
    assert seen[0]["X-Request-Timeout"] == "2.500"


# -- many -------------------------------------------------------------------------------------


class Counted:
    """Images that know how many of them were taken, and answers that wait to be let go."""

    def __init__(self) -> None:
        self.taken, self.running, self.most = 0, 0, 0
        self.lock, self.gate = threading.Lock(), threading.Event()

    def images(self, count: int) -> Iterator[bytes]:
        for _ in range(count):
            self.taken += 1
            yield b"image"

    def answer(self, request: httpx.Request) -> httpx.Response:
        with self.lock:
            self.running += 1
            self.most = max(self.most, self.running)
        assert self.gate.wait(PATIENCE)
        with self.lock:
            self.running -= 1
        return good()


def test_no_more_than_the_bound_is_read_or_on_its_way() -> None:
    counted = Counted()
    counted.gate.set()
    with Client("http://service", transport=httpx.MockTransport(counted.answer)) as client:
        outcomes = client.segment_many(counted.images(50), ["x"], concurrency=4)
        for done, outcome in enumerate(outcomes, start=1):
            assert outcome.answer is not None
            assert counted.taken <= done + 4
    assert done == 50 and counted.most <= 4


def test_closed_early_it_leaves_nothing_running() -> None:
    counted = Counted()
    counted.gate.set()
    with Client("http://service", transport=httpx.MockTransport(counted.answer)) as client:
        outcomes = client.segment_many(counted.images(1000), ["x"], concurrency=4)
        next(outcomes)
        outcomes.close()  # type: ignore[attr-defined]
    assert counted.running == 0 and counted.taken < 20
    assert not [each for each in threading.enumerate() if each.name.startswith("segvlm-client")]


def test_the_loops_client_cancels_what_is_under_way() -> None:
    cancelled: list[bool] = []

    async def answer(request: httpx.Request) -> httpx.Response:
        if len(cancelled) == 0 and b"first" in await request.aread():
            return good()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.append(True)
        raise AssertionError("unreachable")

    async def run() -> None:
        transport = httpx.MockTransport(answer)
        async with AsyncClient("http://service", transport=transport) as client:
            outcomes = client.segment_many([b"first", *[b"image"] * 9], ["x"], concurrency=3)
            await anext(outcomes)
            await asyncio.sleep(0)
            await outcomes.aclose()  # type: ignore[attr-defined]
            assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(run())
    assert len(cancelled) <= 2


def test_pixels_of_another_form_are_refused() -> None:
    with Client("http://service") as client, pytest.raises(ValueError, match="uint8"):
        client.segment(np.zeros((4, 4), dtype=np.float32), ["x"])  # type: ignore[arg-type]


def test_it_needs_neither_the_server_nor_the_model(repo_root: Path) -> None:
    code = """
import sys
for name in ("fastapi", "starlette", "uvicorn", "pydantic", "onnxruntime", "torch", "tokenizers"):
    sys.modules[name] = None
import service.client
"""
    subprocess.run([sys.executable, "-c", code], cwd=repo_root, check=True, timeout=60)


def test_paths_are_read(make_live_service: Callable[..., Any], photo: Any, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(photo.encoded())
    Image.open(path).verify()
    with Client(make_live_service().url) as client:
        from_path, from_text = (client.segment(each, ["red"]) for each in (path, str(path)))
    assert from_path.results[0].rle == from_text.results[0].rle
