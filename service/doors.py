"""Pure ASGI middleware for a second port: what is for operators is there, and only there.

The port is no way around anything: it answers nothing but what stands in `OPERATORS` and `PROBES`.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api_docs import DOCS_PATHS
from service.errors import RouteUnknown, ServiceError

OPERATORS = frozenset({"/metrics", "/openapi.json"} | DOCS_PATHS)
"""What moves to the second port."""

PROBES = frozenset({"/healthz", "/readyz"})
"""What both ports answer."""

_MARK = "admin"


class AdminDoor:
    """The application as the second port calls it: each request says where it came in."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope.setdefault("state", {})[_MARK] = True
        await self._app(scope, receive, send)


def came_in_by_admin_door(scope: Scope) -> bool:
    """Whether a request came to the second port, which needs no API key."""
    return bool(scope.get("state", {}).get(_MARK))


class Doors:
    """Answers 404 for what is at the other port; the outermost but for the observer."""

    def __init__(self, app: ASGIApp, problem: Callable[[Scope, ServiceError], Response]) -> None:
        self._app = app
        self._problem = problem

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or _is_here(scope):
            await self._app(scope, receive, send)
            return
        unknown = RouteUnknown(f"nothing is at {scope['path']} of this port; it may be at another")
        response = self._problem(scope, unknown)
        if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
            await response(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": unknown.title})


def _is_here(scope: Scope) -> bool:
    path = scope["path"]
    if came_in_by_admin_door(scope):
        return scope["type"] == "http" and path in OPERATORS | PROBES
    return path not in OPERATORS
