"""What a replica on Ray Serve is made of, without a cluster."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Message, Receive, Scope, Send

from deploy.ray.behind_proxy import BehindProxy
from deploy.ray.replica_metrics import ReplicaMetrics, exposition
from service.backends.fake import FakeBackend, load_fake
from service.device import DeviceLost
from service.engine import Engine
from service.metrics import Metrics
from service.request_record import RequestRecord
from service.settings import Settings, load_settings

pytestmark = pytest.mark.filterwarnings(
    "ignore:Using extra keyword arguments on `Field`:DeprecationWarning"
)


@pytest.fixture
def ray() -> Any:
    """Ray itself; imported by the tests that need it, because it takes seconds."""
    return pytest.importorskip("ray", reason="needs Ray: pip install 'segvlm[ray]'")


@pytest.fixture
def exits(ray: Any, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What a replica of this process wanted to exit with; it stays, and so do its log and cores."""
    from deploy.ray import replica

    statuses: list[int] = []
    monkeypatch.setattr(replica.os, "_exit", statuses.append)
    monkeypatch.setattr(replica, "configure_log", lambda settings: None)
    monkeypatch.setattr(replica, "_replica_settings", load_settings)
    monkeypatch.setenv("DECODE_SECONDS", "0")
    return statuses


def test_the_file_says_what_ray_and_the_service_know(repo_root: Path, ray: Any) -> None:
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import DeploymentSchema, ServeDeploySchema

    from deploy.ray import application

    written = yaml.safe_load((repo_root / "deploy/ray/serve.yaml").read_text())
    ServeDeploySchema.model_validate(written)
    (app,) = written["applications"]
    (deployment,) = app["deployments"]
    scaling = deployment["autoscaling_config"]
    assert app["import_path"] == f"{application.__name__}:{application.build.__name__}"
    assert deployment["name"] == application.DEPLOYMENT
    assert deployment.keys() <= DeploymentSchema.model_fields.keys()
    assert scaling.keys() <= AutoscalingConfig.model_fields.keys()
    known = {f"SEGVLM_{name.upper()}" for name in Settings.model_fields}
    assert app["runtime_env"]["env_vars"].keys() <= known
    # Ray adds a replica long before one refuses.
    assert scaling["target_ongoing_requests"] <= Settings().max_queue / 4


def test_rays_limits_follow_the_settings(ray: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from deploy.ray.application import build

    for name, value in {"MAX_QUEUE": 10, "SHUTDOWN_TIMEOUT": 50, "DEVICE": "cuda"}.items():
        monkeypatch.setenv(f"SEGVLM_{name}", str(value))
    deployment = build({"max_queued_requests": 7})._bound_deployment
    assert deployment.max_ongoing_requests > 10
    assert deployment._deployment_config.graceful_shutdown_timeout_s > 50
    assert deployment.ray_actor_options["num_gpus"] == 1
    assert deployment.max_queued_requests == 7


def test_a_replica_lives_as_long_as_its_engine(exits: list[int]) -> None:
    """Healthy once warm; when the device is lost it answers, fails its check, and exits."""
    from deploy.ray.replica import Replica
    from tests.deploy.ray_engine import load_slow_engine

    picture = BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "PNG")

    async def live() -> None:
        replica = Replica(load_slow_engine)
        app = replica.__serve_build_asgi_app__()
        transport = httpx.ASGITransport(app)
        async with (
            asyncio.timeout(30),
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://replica") as client,
        ):
            await replica.check_health()
            assert (await client.get("/readyz")).status_code == 200
            response = await client.post(
                "/segment",
                files={"image": picture.getvalue()},
                data={"expression": "the lost dog"},
            )
            assert response.json()["reason"] == "engine_stopped"
            with pytest.raises(RuntimeError, match="taken away by a test"):
                await replica.check_health()
            while not exits:
                await asyncio.sleep(0.02)

    asyncio.run(live())
    assert exits == [1]


def test_a_replica_that_does_not_warm_up_never_becomes_healthy(exits: list[int]) -> None:
    """Its first check fails with the reason, and Ray does the rest."""
    from deploy.ray.replica import Replica

    class Broken(FakeBackend):
        def decode(self, images: Any, texts: Any) -> Any:
            raise DeviceLost("never there")

    def load(settings: Settings) -> Engine:
        return Engine(replace(load_fake(), backend=Broken()), settings, Metrics())

    async def live() -> None:
        replica = Replica(load)
        app = replica.__serve_build_asgi_app__()
        async with asyncio.timeout(30), app.router.lifespan_context(app):
            with pytest.raises(RuntimeError, match="never there"):
                await replica.check_health()

    asyncio.run(live())
    assert exits == []


def test_one_scrape_has_the_series_of_every_replica() -> None:
    replicas = []
    for instance, requests in (("a", 1), ("b", 2)):
        metrics = Metrics()
        for _ in range(requests):
            metrics.request_started()
            metrics.request_finished(finished_request())
        replicas.append(ReplicaMetrics(instance, list(metrics.registry.collect())))
    families = {
        family.name: family
        for family in text_string_to_metric_families(exposition(replicas).decode())
    }
    alone = {family.name for family in Metrics().registry.collect()}
    assert families.keys() == alone
    assert all(
        {sample.labels["instance"] for sample in family.samples} <= {"a", "b"}
        for family in families.values()
    )
    received = families["segvlm_received"]
    assert received.type == "counter"
    assert {s.labels["instance"]: s.value for s in received.samples} == {"a": 1, "b": 2}
    seconds = families["segvlm_request_seconds"]
    counts = {s.labels["instance"]: s.value for s in seconds.samples if s.name.endswith("_count")}
    assert seconds.type == "histogram" and counts == {"a": 1, "b": 2}


def finished_request() -> RequestRecord:
    return RequestRecord(
        request_id="r",
        method="POST",
        path="/segment",
        route="/segment",
        status=200,
        reason=None,
        traceparent=None,
        key=None,
        started_at=0.0,
        finished_at=1.0,
        stages=(),
    )


def test_the_request_id_is_left_to_the_proxy() -> None:
    answer = PlainTextResponse("hello", headers={"X-Request-Id": "mine", "X-Other": "kept"})
    headers = TestClient(BehindProxy(answer)).get("/").headers
    assert "X-Request-Id" not in headers and headers["X-Other"] == "kept"


@pytest.mark.parametrize("first", ["request", "receive"])
def test_what_ray_cancels_is_a_client_that_left(first: str) -> None:
    """The application is told, ends in its own way, and only then is the request over."""
    seen: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        seen.append((await receive())["type"])
        seen.append((await receive())["type"])

    async def body_then_nothing() -> Message:
        if seen and first == "receive":
            raise RuntimeError("the task of Ray that would receive was cancelled")
        if seen:
            await asyncio.Event().wait()
        return {"type": "http.request", "body": b"", "more_body": False}

    async def discard(message: Message) -> None: ...

    async def cancel() -> None:
        request = asyncio.create_task(
            BehindProxy(app)({"type": "http"}, body_then_nothing, discard)  # type: ignore[arg-type]
        )
        async with asyncio.timeout(10):
            while not seen:
                await asyncio.sleep(0)
            if first == "request":
                request.cancel()
            await asyncio.wait([request])
        assert request.cancelled() == (first == "request")

    asyncio.run(cancel())
    assert seen == ["http.request", "http.disconnect"]
