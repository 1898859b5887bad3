"""The service on a real Ray Serve, which loses replicas, gains some and is upgraded."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient
from PIL import Image, ImageDraw
from prometheus_client.parser import text_string_to_metric_families

from service.app import create_app
from service.loading import load_engine
from service.settings import load_settings
from tests.deploy.ray_cluster import Cluster, local_cluster
from tests.deploy.ray_crowd import Crowd, Question
from tests.waiting import PATIENCE, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        "ignore:Using extra keyword arguments on `Field`:DeprecationWarning"
    ),
    pytest.mark.filterwarnings("ignore:`look_back_period_s`:FutureWarning"),
]

SLOW_ENGINE = "tests.deploy.ray_engine:build"
SLOW = {"DECODE_SECONDS": "0.4", "SEGVLM_MAX_QUEUE": "8"}
"""Tests that leave the deployment as it was begin with the same, so that it is made once."""


@pytest.fixture(scope="module")
def cluster(repo_root: Path) -> Iterator[Cluster]:
    with local_cluster(repo_root) as running:
        yield running


def scrape(cluster: Cluster, name: str, **labels: str) -> dict[str, float]:
    """The samples with that name and these labels, by replica."""
    response = httpx.get(f"{cluster.url}/metrics", timeout=PATIENCE)
    assert response.status_code == 200, response.text
    return {
        sample.labels["instance"]: sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    }


def drawn_photo() -> bytes:
    """A dark thing on a bright ground."""
    image, encoded = Image.new("RGB", (320, 240), (200, 210, 220)), BytesIO()
    ImageDraw.Draw(image).ellipse((80, 60, 220, 200), fill=(90, 60, 30))
    image.save(encoded, "JPEG", quality=90)
    return encoded.getvalue()


def test_two_replicas_serve_the_bundle(cluster: Cluster) -> None:
    """Each has an engine of its own and answers as the service alone does; a scrape sees both."""
    cluster.deploy({}, num_replicas=2)
    body: Any = {"files": {"image": drawn_photo()}, "data": {"expression": ["the bag", "the sky"]}}
    settings = load_settings(model_threads=1, access_log=False)
    with TestClient(create_app(settings, load_engine(settings))) as alone:
        expected = alone.post("/segment", **body).json()["results"]
    assert any(result["area"] for result in expected), expected
    with httpx.Client(base_url=cluster.url, timeout=PATIENCE) as client:
        for _ in range(16):
            response = client.post("/segment", **body)
            assert response.status_code == 200, response.text
            assert response.json()["results"] == expected
    assert len(response.headers.get_list("X-Request-Id")) == 1
    assert list(scrape(cluster, "segvlm_model_ready").values()) == [1, 1]
    received = scrape(cluster, "segvlm_received_total")
    assert len(received) == 2 and all(received.values()), received


def test_no_request_is_lost_when_a_replica_is_killed(cluster: Cluster) -> None:
    cluster.deploy(SLOW, SLOW_ENGINE, num_replicas=2)
    with Crowd.around(cluster.url, people=6) as crowd:
        crowd.wait_for(12)
        before = cluster.replicas()
        os.kill(min(before), signal.SIGKILL)
        wait_until(
            lambda: len(cluster.replicas() - before) == 1 and cluster.runs(2), "a new replica"
        )
        crowd.wait_for(12)
    assert crowd.asked_again, "the killed replica had nothing to answer"


def test_a_replica_whose_engine_died_is_replaced(cluster: Cluster) -> None:
    cluster.deploy(SLOW, SLOW_ENGINE, num_replicas=2)
    before = cluster.replicas()
    response = httpx.post(
        f"{cluster.url}/segment",
        files={"image": drawn_photo()},
        data={"expression": "the lost dog"},
        timeout=PATIENCE,
    )
    assert response.status_code == 503 and response.json()["reason"] == "engine_stopped"
    wait_until(lambda: len(cluster.replicas() - before) == 1 and cluster.runs(2), "a new replica")
    assert len(cluster.replicas() & before) == 1, "the healthy one stays"
    with Crowd.around(cluster.url, people=4, tries=1) as crowd:
        crowd.wait_for(8)


def test_overload_is_refused_by_the_service_itself(cluster: Cluster) -> None:
    """Ray passes on more than a replica takes, so the 503 and its Retry-After are the service's."""
    cluster.deploy(SLOW, SLOW_ENGINE, num_replicas=2)
    limits = httpx.Limits(max_connections=40)
    with (
        httpx.Client(timeout=PATIENCE, limits=limits) as client,
        ThreadPoolExecutor(40) as pool,
    ):
        responses = list(pool.map(lambda i: Question(i).send(client, cluster.url), range(40)))
    refused = [response for response in responses if response.status_code != 200]
    assert refused and len(refused) < len(responses)
    for response in refused:
        assert response.status_code == 503 and response.json()["reason"] == "queue_full"
        assert int(response.headers["Retry-After"]) >= 1


def test_who_leaves_is_counted_as_such(cluster: Cluster) -> None:
    """And not as refused by a replica that stops, which a cancellation means without Ray."""
    cluster.deploy(SLOW, SLOW_ENGINE, num_replicas=2)
    name, of = "segvlm_requests_total", {"route": "/segment"}
    before = scrape(cluster, name, **of, code="499")
    others = [scrape(cluster, name, **of, code=code) for code in ("500", "503")]

    def leave(number: int) -> None:
        with httpx.Client(timeout=0.3) as client, pytest.raises(httpx.TimeoutException):
            Question(number).send(client, cluster.url)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(leave, range(8)))
    wait_until(
        lambda: sum(scrape(cluster, "segvlm_inflight_requests").values()) == 1, "only the scrape"
    )
    assert scrape(cluster, name, **of, code="499") != before
    assert [scrape(cluster, name, **of, code=code) for code in ("500", "503")] == others


def test_what_is_in_flight_during_an_upgrade_is_answered(cluster: Cluster) -> None:
    """Nobody has to ask twice, although every replica is replaced under way."""
    cluster.deploy(SLOW, SLOW_ENGINE, num_replicas=2)
    before = cluster.replicas()
    with Crowd.around(cluster.url, people=4, tries=1) as crowd:
        crowd.wait_for(4)
        cluster.deploy({**SLOW, "DECODE_SECONDS": "0.3"}, SLOW_ENGINE, num_replicas=2)
        crowd.wait_for(4)
    assert not cluster.replicas() & before


def test_replicas_follow_the_load(cluster: Cluster) -> None:
    cluster.deploy(
        {**SLOW, "DECODE_SECONDS": "0.3"},
        SLOW_ENGINE,
        autoscaling_config={
            "min_replicas": 1,
            "max_replicas": 2,
            "target_ongoing_requests": 2,
            "upscale_delay_s": 0.5,
            "downscale_delay_s": 0.5,
            "look_back_period_s": 2,
        },
    )
    wait_until(lambda: cluster.runs(1), "a single replica")
    with Crowd.around(cluster.url, people=6, tries=1):
        wait_until(lambda: cluster.runs(2), "a second replica")
    wait_until(lambda: cluster.runs(1), "a single replica again")


def test_a_bad_setting_fails_the_upgrade_and_nothing_else(cluster: Cluster) -> None:
    cluster.deploy(SLOW, SLOW_ENGINE, num_replicas=1)
    before = cluster.replicas()
    with pytest.raises(AssertionError, match="SEGVLM_MAX_QUEUE=0: must be"):
        cluster.deploy({"SEGVLM_MAX_QUEUE": "0"}, num_replicas=1)
    assert cluster.replicas() == before
    with Crowd.around(cluster.url, people=1, tries=1) as crowd:
        crowd.wait_for(2)
