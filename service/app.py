"""The application: routes, lifespan, and the one place where an error becomes an answer."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute

from service.access import Access
from service.api_docs import read_docs_files
from service.api_keys import KeyFile
from service.doors import Doors
from service.engine import Engine
from service.errors import (
    ClientGone,
    InternalError,
    MethodUnknown,
    RouteUnknown,
    ServiceError,
)
from service.memory_budget import MemoryBudget
from service.metrics import Metrics
from service.middleware import BodyLimit, RequestObserver
from service.openapi import describe_api
from service.pipeline import Pipeline
from service.problems import problem_response
from service.request_log import log_request
from service.request_record import RequestRecord
from service.routes import (
    docs,
    health,
    hugging_face,
    inference_v2,
    label_studio,
    page,
    roboflow,
    segment,
    stream,
)
from service.settings import Settings
from service.static_files import read_static_files
from service.streams import Streams
from service.tracing import Tracer, make_tracer

logger = logging.getLogger("segvlm.request")

READABLE_HEADERS = (
    "X-Request-Id", "Retry-After", "Server-Timing", "RateLimit-Policy", "RateLimit",
    "WWW-Authenticate",
)  # fmt: skip
"""What a page of another origin may read of an answer beside its body."""

DESCRIPTION = """\
Send a photo and what to find in it, get the mask of that region:

    curl -F image=@photo.jpg -F "expression=the person" http://localhost:8000/segment
"""

ROUTERS = (
    segment.router,
    stream.router,
    inference_v2.router,
    hugging_face.router,
    label_studio.router,
    roboflow.router,
    health.router,
    page.router,
    docs.router,
)


def create_app(settings: Settings, engine: Engine, tracer: Tracer | None = None) -> FastAPI:
    """An application that serves `engine`; its lifespan starts and stops the engine's threads."""
    budget = MemoryBudget(settings.max_buffered_bytes)
    pipeline = Pipeline(engine, settings, budget)
    tracer = tracer or make_tracer(settings)

    def record(ended: RequestRecord) -> None:
        if settings.access_log:
            log_request(ended)
        tracer.record(ended)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        engine.drain()
        # Blocks the loop on purpose: every request is answered by now, there is nothing to run.
        engine.stop(settings.shutdown_timeout)
        pipeline.close()
        tracer.close()

    app = FastAPI(
        title="SegVLM",
        version=engine.spec.version,
        summary=f"Text-driven image segmentation with {engine.spec.name}",
        description=DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,  # ours, whose files come from no other host
        redoc_url=None,
    )
    app.state.engine = engine
    app.state.pipeline = pipeline
    app.state.settings = settings
    app.state.streams = Streams(settings.max_streams, budget, engine.metrics)
    app.state.static_files = read_static_files(engine.spec, settings)
    app.state.docs_files = read_docs_files(settings)
    app.openapi = functools.partial(describe_api, app)  # type: ignore[method-assign]
    for router in ROUTERS:
        app.include_router(router)
    routes = [route for router in ROUTERS for route in router.routes]
    _announce(routes, engine.metrics)

    async def answer_error(request: Request, error: Exception) -> Response:
        known = _in_tree(request, error)
        if known.status == 500:  # the rest is no surprise: the metrics count it
            logger.error("%s", known.title, exc_info=known.__cause__)
        return problem_response(request.scope, known)

    for kind in (ServiceError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, answer_error)
    app.add_middleware(BodyLimit, settings=settings, budget=budget)
    _control_access(app, settings, routes)
    app.add_middleware(  # the last one added is the outermost
        RequestObserver, metrics=engine.metrics, problem=problem_response, record=record
    )
    return app


def _announce(routes: Sequence[BaseRoute], metrics: Metrics) -> None:
    for route in routes:
        if isinstance(route, APIRoute):
            metrics.announce_route(
                route.path, {route.status_code or 200, *map(int, route.responses)}
            )


def _control_access(app: FastAPI, settings: Settings, routes: Sequence[BaseRoute]) -> None:
    """See docs/access.md."""
    if settings.api_keys_file is not None:
        keys = KeyFile(settings.api_keys_file)
        app.state.engine.metrics.announce_keys(keys.names)
        app.add_middleware(Access, keys=keys, problem=problem_response, routes=routes)
    if settings.cors_origins:  # outside Access: a browser asks without the key first
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins.split(","),
            allow_methods=("GET", "HEAD", "POST"),
            allow_headers=("*",),
            expose_headers=READABLE_HEADERS,
        )
    if settings.admin_port:
        app.add_middleware(Doors, problem=problem_response)


def _in_tree(request: Request, error: Exception) -> ServiceError:
    """What the framework raises, as a member of our own error tree."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, ClientDisconnect):
        return ClientGone()
    assert isinstance(error, HTTPException)
    path, method = request.url.path, request.method
    elsewhere = request.app.state.settings.admin_port  # and only operators may reach it
    described = "docs/api.md" if elsewhere else "/docs"
    if error.status_code == 404:
        return RouteUnknown(f"nothing is at {path}; see {described} for what this service answers")
    if error.status_code == 405:
        allowed = dict(error.headers or {})
        return MethodUnknown(
            f"{path} does not take {method}, it takes {allowed.get('Allow', 'another method')}; "
            f"see {described}",
            headers=allowed,
        )
    internal = InternalError()
    internal.__cause__ = error
    return internal
