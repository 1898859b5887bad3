"""Frames in, answers out: their order, which are dropped, what holds for which frame."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pycocotools import mask as coco

from tests.waiting import PATIENCE, wait_until


def test_result_is_the_answer_of_segment(
    serve: Callable[..., Any], make_service: Callable[..., Any], photo: Any
) -> None:
    stream = serve(image_size=320).stream(expressions=["the red one", "the blue one"])
    image = photo.encoded("JPEG", quality=95)
    result = stream.ask(image)
    assert (result.pop("type"), result.pop("frame"), result.pop("dropped")) == ("result", 0, 0)
    assert result.pop("limited") is False
    single = make_service(image_size=320).client.post(
        "/segment",
        files={"image": image},
        data={"expression": ["the red one", "the blue one"]},
    )
    assert result.pop("timings").keys() == single.json().pop("timings").keys()
    assert result == {name: part for name, part in single.json().items() if name != "timings"}
    red = coco.decode(result["results"][0]["mask"]).astype(bool)
    assert (red & photo.red).sum() / (red | photo.red).sum() > 0.9


def test_ready_names_the_model(serve: Callable[..., Any]) -> None:
    ready = serve().stream().configure(expressions=["a"])
    assert ready == {"type": "ready", "model": {"name": "fake", "version": "1"}}


def test_newest_frame_wins_while_the_model_is_busy(
    serve: Callable[..., Any], small_photo: bytes
) -> None:
    running = serve()
    stream = running.stream(expressions=["a"])
    running.hold()
    stream.send(small_photo)
    assert running.service.backend.entered.wait(PATIENCE)
    stream.send(*[small_photo] * 9)
    wait_until(lambda: running.frames().get("dropped") == 8, "frames to be dropped")
    running.go_on()
    answers = [stream.receive() for _ in range(2)]
    assert [(each["frame"], each["dropped"]) for each in answers] == [(0, 0), (9, 8)]
    assert running.frames() == {"received": 10, "answered": 2, "dropped": 8}
    assert running.service.backend.batches == [1, 1]


def test_next_frame_is_made_ready_while_the_model_works(
    serve: Callable[..., Any], small_photo: bytes
) -> None:
    """Once it is known how long that takes: two frames are with the engine, one waits."""
    running = serve()
    stream = running.stream(expressions=["a"])
    stream.ask(small_photo)
    running.hold()
    stream.send(small_photo, small_photo)
    wait_until(lambda: running.service.engine.images == 2, "the second to be launched")
    stream.send(small_photo, small_photo)
    wait_until(lambda: running.frames().get("dropped") == 1, "the fourth to replace the third")
    assert running.service.engine.images == 2
    running.go_on()
    assert [stream.receive()["frame"] for _ in range(3)] == [1, 2, 4]


def test_every_frame_is_answered_in_order_without_newest(
    serve: Callable[..., Any], photo: Any, small_photo: bytes
) -> None:
    """Large and small ones alternate, so they are ready out of order."""
    running = serve(image_threads=2)
    large = photo.encoded()
    stream = running.stream(expressions=["a"], newest=False)
    stream.send(*[large, small_photo] * 10)
    answers = [stream.receive() for _ in range(20)]
    assert [(each["frame"], each["dropped"]) for each in answers] == [(n, 0) for n in range(20)]
    assert [each["image"]["width"] for each in answers] == [640, 96] * 10
    assert running.frames() == {"received": 20, "answered": 20}


def test_no_more_is_read_than_is_worked_on_without_newest(
    serve: Callable[..., Any], small_photo: bytes
) -> None:
    running = serve(stream_frames=3)
    stream = running.stream(expressions=["a"], newest=False)
    running.hold()
    stream.send(*[small_photo] * 20)
    wait_until(lambda: running.service.engine.images == 3, "three frames to be launched")
    assert running.frames() == {"received": 3}
    running.go_on()
    assert [stream.receive()["frame"] for _ in range(20)] == list(range(20))


def test_configuration_holds_for_the_frames_after_it(
    serve: Callable[..., Any], small_photo: bytes
) -> None:
    """Its `ready` stands between the answers to the frames before and after."""
    running = serve()
    stream = running.stream(expressions=["a"], newest=False)
    running.hold()
    stream.send(small_photo)
    stream.socket.send('{"expressions": ["b", "c"], "newest": false, "format": "none"}')
    stream.send(small_photo)
    running.go_on()
    first, ready, second = (stream.receive() for _ in range(3))
    assert [each["expression"] for each in first["results"]] == ["a"]
    assert ready["type"] == "ready"
    assert [each["expression"] for each in second["results"]] == ["b", "c"]
    assert second["results"][0]["mask"] is None


def test_ready_does_not_overtake_a_frame_that_waits(
    serve: Callable[..., Any], small_photo: bytes
) -> None:
    running = serve()
    stream = running.stream(expressions=["a"])
    running.hold()
    stream.send(small_photo)
    assert running.service.backend.entered.wait(PATIENCE)
    stream.send(small_photo)
    stream.socket.send('{"expressions": ["b"], "newest": false}')
    stream.send(small_photo)
    running.go_on()
    kinds = [stream.receive() for _ in range(4)]
    assert [each.get("frame", each["type"]) for each in kinds] == [0, 1, "ready", 2]


@pytest.mark.parametrize(
    ("options", "asked"),
    [
        ({"format": "png"}, lambda result: result["mask"]["format"] == "png"),
        ({"format": "polygons"}, lambda result: result["mask"]["format"] == "polygons"),
        ({"threshold": 1.0}, lambda result: result["area"] == 0),
        ({"include_probability": True}, lambda result: result["probability"]["data"]),
    ],
)
def test_options_are_those_of_segment(
    serve: Callable[..., Any], small_photo: bytes, options: Any, asked: Any
) -> None:
    stream = serve().stream(expressions=["a"], **options)
    assert asked(stream.ask(small_photo)["results"][0])


def test_frames_are_asked_by_their_pixels_and_texts_only_once(
    serve: Callable[..., Any], small_photo: bytes, photo: Any
) -> None:
    running = serve()
    stream = running.stream(expressions=["a", "b"])
    for image in (small_photo, photo.encoded(), small_photo):
        assert len(stream.ask(image)["results"]) == 2
    assert running.service.backend.images_encoded == 2
    assert running.service.backend.texts_encoded == 2


def test_timeout_of_a_frame_counts_from_its_arrival(
    serve: Callable[..., Any], small_photo: bytes
) -> None:
    running = serve(timeout=0.3)
    stream = running.stream(expressions=["a"])
    running.hold()
    stream.send(small_photo)
    assert running.service.backend.entered.wait(PATIENCE)
    stream.send(small_photo)
    errors = [stream.receive() for _ in range(2)]
    assert [(each["frame"], each["reason"]) for each in errors] == [
        (0, "deadline"),
        (1, "deadline"),
    ]
    running.go_on()
    assert stream.ask(small_photo)["frame"] == 2
    assert running.frames() == {"received": 3, "answered": 1, "deadline": 2}
