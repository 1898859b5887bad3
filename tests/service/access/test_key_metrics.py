"""Requests and refusals by the name of their key: every one once, and no name but the file's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from service.metrics import ANONYMOUS
from tests.waiting import wait_until


def counted(service: Any) -> dict[tuple[str, str, str], float]:
    """What is not 0, by (uses or refusals, key, use)."""
    families = text_string_to_metric_families(service.engine.metrics.exposition().decode())
    return {
        (family.name.removeprefix("segvlm_key_"), sample.labels["key"], sample.labels["use"]): (
            sample.value
        )
        for family in families
        if family.name.startswith("segvlm_key_")
        for sample in family.samples
        if sample.value
    }


def names(service: Any) -> set[str]:
    families = service.engine.metrics.key_uses.collect()
    return {sample.labels["key"] for family in families for sample in family.samples}


def test_each_request_is_counted_for_its_key(
    make_service: Callable[..., Any], make_keys: Callable[..., Any]
) -> None:
    keys = make_keys(anna="rate=0.001 burst=2", ben="")
    service = make_service(api_keys_file=keys.path)
    anna, ben = ({"X-API-Key": keys.key[name]} for name in ("anna", "ben"))
    assert service.client
    assert names(service) == {"anna", "ben", ANONYMOUS}  # from the first scrape on
    for headers in (anna, anna, anna, ben, {"X-API-Key": "stranger"}, {}):
        service.client.get("/metrics", headers=headers)
    service.client.get("/healthz")
    assert counted(service) == {
        ("uses", "anna", "request"): 2,
        ("refusals", "anna", "request"): 1,
        ("uses", "ben", "request"): 1,
        ("refusals", ANONYMOUS, "request"): 2,
        ("uses", ANONYMOUS, "request"): 1,
    }
    assert sum(counted(service).values()) == service.metric("segvlm_received_total")
    assert names(service) == {"anna", "ben", ANONYMOUS}


def test_streams_are_counted_apart(
    make_live_service: Callable[..., Any], make_keys: Callable[..., Any]
) -> None:
    keys = make_keys(anna="concurrent=1")
    live = make_live_service(api_keys_file=keys.path, access_log=False)
    address = live.url.replace("http:", "ws:") + "/stream"
    anna = {"X-API-Key": keys.key["anna"]}
    with connect(address, additional_headers=anna, close_timeout=1):
        for headers in (anna, {}):
            with pytest.raises(InvalidStatus), connect(address, additional_headers=headers):
                pass
    expected = {
        ("uses", "anna", "stream"): 1,
        ("refusals", "anna", "stream"): 1,
        ("refusals", ANONYMOUS, "stream"): 1,
    }
    wait_until(lambda: counted(live.service) == expected, f"{expected}")


def test_without_keys_all_is_anonymous(service: Any, small_photo: bytes) -> None:
    files, data = {"image": small_photo}, {"expression": "a"}
    service.client.post("/segment", files=files, data=data, headers={"X-API-Key": "anna"})
    service.client.post("/segment", files=files)
    assert counted(service) == {("uses", ANONYMOUS, "request"): 2}
    assert names(service) == {ANONYMOUS}
