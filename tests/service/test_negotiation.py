"""The Accept header and `format` decide what kind of answer there is."""

from __future__ import annotations

import pytest

from service.errors import NotAcceptable
from service.negotiation import choose_answer
from service.request_parsing import SegmentTask
from service.schemas import MaskFormat, SegmentOptions


def task(*expressions: str, format: MaskFormat = "rle") -> SegmentTask:
    return SegmentTask(b"", expressions, SegmentOptions(format=format))


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("", "json"),
        ("*/*", "json"),
        ("application/json", "json"),
        ("image/png", "mask"),
        ("image/*", "mask"),
        ("IMAGE/PNG", "mask"),
        ("image/png, application/json", "json"),
        ("image/png, application/json;q=0.9", "mask"),
        ("image/png;q=0.2, */*;q=0.1", "mask"),
        ("image/png;q=0, */*", "json"),
        ("text/html", "json"),
        ("image/png;q=nonsense", "json"),
        (",;=,", "json"),
    ],
)
def test_one_expression(accept: str, kind: str) -> None:
    assert choose_answer(task("a"), accept).name == kind


def test_picture_of_one_mask_cannot_hold_two() -> None:
    with pytest.raises(NotAcceptable, match=r"one expression.*application/json.*format=overlay"):
        choose_answer(task("a", "b"), "image/png")
    assert choose_answer(task("a", "b"), "image/png, */*").name == "json"


@pytest.mark.parametrize(
    ("accept", "media_type"),
    [
        ("", "image/png"),
        ("*/*", "image/png"),
        ("application/json", "image/png"),
        ("image/jpeg", "image/jpeg"),
        ("image/png;q=0.5, image/jpeg", "image/jpeg"),
    ],
)
def test_overlay_is_a_picture_of_any_number(accept: str, media_type: str) -> None:
    chosen = choose_answer(task("a", "b", format="overlay"), accept)
    assert (chosen.name, chosen.media_type) == ("overlay", media_type)
