"""The client over real sockets, against a server that breaks off, trickles, or answers nonsense."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from service.client import (
    AsyncClient,
    Client,
    MalformedAnswer,
    Retry,
    Segmentation,
    ServiceRefused,
    Unreachable,
)
from tests.service.client.scripted_server import (
    DOCUMENT,
    GOOD,
    Step,
    answer,
    hang_up,
    playing,
    reset_halfway,
    silence,
    trickle,
)
from tests.waiting import PATIENCE, wait_until

ONCE = Retry(attempts=1)
DEEP = answer(200, b"[" * 100_000)


def call(url: str, **options: Any) -> Segmentation:
    with Client(url, **options) as client:
        return client.segment(b"picture", ["x"])


def call_async(url: str, **options: Any) -> Segmentation:
    async def run() -> Segmentation:
        async with AsyncClient(url, **options) as client:
            return await client.segment(b"picture", ["x"])

    return asyncio.run(run())


both = pytest.mark.parametrize("ask", [call, call_async])


@both
@pytest.mark.parametrize("step", [silence, trickle])
def test_a_try_ends_in_its_time_whatever_the_server_does(
    ask: Callable[..., Any], step: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.client_exchange._LATE", 0.1)
    begun = time.monotonic()
    with playing(step) as script:
        with pytest.raises(Unreachable):
            ask(script.url, timeout=0.2)
        assert 0.2 < time.monotonic() - begun < PATIENCE / 2
        wait_until(lambda: script.left == 1, "the connection to be closed")
        assert len(script.received) == 1


@both
@pytest.mark.parametrize("step", [reset_halfway, hang_up])
def test_a_connection_that_breaks_is_made_again(ask: Callable[..., Any], step: Step) -> None:
    with playing(step, GOOD) as script:
        assert ask(script.url, retry=Retry(first_pause=0.01)).results[0].mask.shape == (2, 3)
        assert [b"\r\n\r\npicture\r\n" in each.body for each in script.received] == [True, True]


@both
def test_nobody_listens(ask: Callable[..., Any]) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        with pytest.raises(Unreachable):
            ask(url, retry=Retry(attempts=3, first_pause=0.01))


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host", "", "http://"])
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    for kind in (Client, AsyncClient):
        with pytest.raises(ValueError, match="no address of a service"):
            kind(url)


def test_retry_after_may_be_a_date() -> None:
    later = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    pauses: list[float] = []
    with playing(answer(503, Retry_After=later), GOOD) as script:
        call(script.url, sleep=pauses.append)
    (pause,) = pauses
    assert 20 < pause <= 30


@pytest.mark.parametrize("value", ["soon", "-5", "", "²", "1e9"])
def test_a_senseless_retry_after_is_none(value: str) -> None:
    pauses: list[float] = []
    with playing(answer(503, Retry_After=value), GOOD) as script:
        call(script.url, sleep=pauses.append)
    (pause,) = pauses
    assert pause < 1


def changed(**members: Any) -> Step:
    return answer(200, json.dumps({**DOCUMENT, **members}).encode())


def result(**members: Any) -> Step:
    return changed(results=[{**DOCUMENT["results"][0], **members}])  # type: ignore[index]


@pytest.mark.parametrize(
    "step",
    [
        DEEP,
        answer(200, b"\xff"),
        answer(200, b"no", Content_Encoding="gzip"),
        changed(timings=[]),
        result(mask={"size": [9, 9], "counts": "1Q2"}),
        result(mask={"size": [2, 3], "counts": 6}),
        result(area=5),
        result(bbox=[1, 2]),
        result(probability={"data": "bm8gUE5H"}),
    ],
)
def test_another_answer_than_ours_is_told(step: Step) -> None:
    with playing(step) as script:
        with pytest.raises(MalformedAnswer):
            call(script.url)
        assert len(script.received) == 1


def test_a_mask_that_cannot_be_decoded_is_told() -> None:
    # Of the right area, but longer than the image.
    with playing(result(mask={"size": [2, 3], "counts": "2461"}, area=9)) as script:
        found = call(script.url).results[0]
    with pytest.raises(MalformedAnswer):
        _ = found.mask


def test_a_refusal_in_nonsense_is_still_a_refusal() -> None:
    with playing(answer(400, b"[" * 100_000)) as script, pytest.raises(ServiceRefused) as told:
        call(script.url)
    assert told.value.status == 400


def test_no_image_and_no_answer_costs_the_others() -> None:
    images: Any = [b"a", None, b"b", Path("missing.png"), np.zeros((3, 3)), b"c"]

    async def many(url: str) -> list[Any]:
        async with AsyncClient(url, retry=ONCE) as client:
            return [each async for each in client.segment_many(images, ["x"], concurrency=1)]

    for run in (
        lambda url: list(Client(url, retry=ONCE).segment_many(images, ["x"], concurrency=1)),
        lambda url: asyncio.run(many(url)),
    ):
        with playing(GOOD, DEEP, GOOD) as script:
            outcomes = run(script.url)
        kinds = [type(each.error) for each in outcomes]
        assert kinds == [
            type(None), ValueError, MalformedAnswer, FileNotFoundError, ValueError, type(None)
        ]  # fmt: skip


def test_every_form_of_an_image_has_the_same_answer(
    make_live_service: Callable[..., Any], photo: Any, tmp_path: Path
) -> None:
    encoded, pixels = photo.encoded(), np.asarray(photo.picture)
    (tmp_path / "photo.png").write_bytes(encoded)
    forms: list[Any] = [
        encoded, bytearray(encoded), memoryview(encoded), tmp_path / "photo.png",
        str(tmp_path / "photo.png"), photo.picture, photo.picture.convert("RGBA"),
        pixels, pixels[:, ::-1][:, ::-1], np.asarray(photo.picture.convert("RGBA")),
    ]  # fmt: skip
    with Client(make_live_service().url) as client:
        counts = {client.segment(form, ["red"]).results[0].rle["counts"] for form in forms}
        assert len(counts) == 1
        modes = ("1", "L", "LA", "P", "CMYK", "YCbCr", "I;16", "F", "RGBa", "HSV")
        others: list[Any] = [Image.new(mode, (40, 30)) for mode in modes]
        others += [np.zeros((30, 40), np.uint8), np.zeros((30, 40, 1), np.uint8)]
        for other in others:
            assert client.segment(other, ["x"]).results[0].mask.shape == (30, 40)


def test_a_picture_that_lies_turned_in_memory_gets_masks_of_its_own_shape(
    make_live_service: Callable[..., Any], tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Client(make_live_service().url) as client:
        for name in ("turned.jpg", "turned.png"):
            Image.new("RGB", (64, 48)).save(tmp_path / name, exif=exif)
            # A file is seen as a person sees it, a picture as it lies in memory.
            assert client.segment(tmp_path / name, ["x"]).results[0].mask.shape == (64, 48)
            with Image.open(tmp_path / name) as picture:
                assert client.segment(picture, ["x"]).results[0].mask.shape == (48, 64)
