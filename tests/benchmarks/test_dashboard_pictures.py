"""The load of the dashboards' pictures: each kind of request gets the answer that it stands for."""

from __future__ import annotations

import httpx2 as httpx

from benchmarks import dashboard_pictures, load
from benchmarks.served import our_service


def test_every_kind_of_request_is_what_it_stands_for() -> None:
    (photo,) = load.drawn_jpegs(1, 64, 48)
    with our_service() as (url, _), httpx.Client(timeout=60) as client:
        base = url.removesuffix("/segment")
        statuses = {}
        for ask, _often in dashboard_pictures.ASKS:
            asked = ask(photo, "the person")
            answer = client.post(base + asked.pop("url"), **asked)
            statuses[ask.__name__.strip("_")] = answer.status_code
    assert statuses.pop("hurried") in (200, 504)
    assert statuses.pop("mistaken") == 400
    assert set(statuses.values()) == {200}, statuses
