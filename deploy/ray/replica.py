"""One replica: the service's own application around an engine, and its life under Ray Serve."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Any

import ray
from fastapi import FastAPI, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST
from ray import serve

from deploy.ray.behind_proxy import BehindProxy
from deploy.ray.replica_metrics import ReplicaMetrics, exposition
from service.app import create_app
from service.engine import Engine
from service.process_memory import return_large_blocks
from service.request_log import configure_log
from service.settings import Settings, load_settings

logger = logging.getLogger("segvlm.replica")

_TICK = 0.1
_FAREWELL = 0.5  # seconds between the engine's death and the process's: what waited is answered
_SCRAPE_TIMEOUT = 3.0


class Replica:
    """What Ray makes in a process of its own, with the cores or the GPU that it has assigned.

    Ray calls `__init__`, `__serve_build_asgi_app__`, the application's lifespan and `check_health`,
    in this order, and sends requests after that; at the end it waits for the requests under way
    and then ends the lifespan.
    """

    def __init__(self, load: Callable[[Settings], Engine]) -> None:
        return_large_blocks()
        self._settings = _replica_settings()
        configure_log(self._settings)
        self._engine = load(self._settings)
        self._watch: asyncio.Task[None] | None = None

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The service's application, with a /metrics that answers for all replicas."""
        app = create_app(self._settings, self._engine)
        app.router.routes.insert(0, APIRoute("/metrics", self._scrape, include_in_schema=False))
        app.add_middleware(BehindProxy)
        return app

    async def check_health(self) -> None:
        """Raise if the engine is dead. The first call comes before any request: it waits for the
        warm-up."""
        while self._engine.alive and not self._engine.warm:
            await asyncio.sleep(_TICK)
        if not self._engine.alive:
            raise RuntimeError(f"the model has stopped: {self._engine.fault}")
        if self._watch is None:
            self._watch = asyncio.create_task(self._leave_with_the_engine())

    async def _leave_with_the_engine(self) -> None:
        """End the process when the engine has died, so that Ray replaces it.

        Failed checks alone would do so too, but only the third in a row, and until then a replica
        that refuses everything at once looks the least busy and would be sent most requests.
        """
        while self._engine.fault is None:
            await asyncio.sleep(_TICK)
        logger.critical("exiting for Ray to replace the replica: %s", self._engine.fault)
        await asyncio.sleep(_FAREWELL)
        os._exit(1)  # a thread may hang in the device

    async def metrics(self) -> ReplicaMetrics:
        """What this replica has counted."""
        return ReplicaMetrics(
            serve.get_replica_context().replica_tag,
            list(self._engine.metrics.registry.collect()),
        )

    async def _scrape(self) -> Response:
        context = serve.get_replica_context()
        handle = serve.get_deployment_handle(context.deployment, context.app_name)
        answers = await handle.broadcast("metrics").results_async(
            timeout_s=_SCRAPE_TIMEOUT, return_exceptions=True
        )
        answered = [answer for answer in answers if isinstance(answer, ReplicaMetrics)]
        return Response(exposition(answered), headers={"Content-Type": CONTENT_TYPE_LATEST})


def _replica_settings() -> Settings:
    """The settings, and on a CPU no more threads for the model than Ray has given it cores."""
    settings = load_settings(admin_port=0)  # Ray's proxy has one port
    context: Any = ray.get_runtime_context()
    cores = context.get_assigned_resources().get("CPU", 0.0)
    if settings.model_threads or not cores:
        return settings
    return load_settings(model_threads=max(1, int(cores)), admin_port=0)
