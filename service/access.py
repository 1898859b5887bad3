"""Pure ASGI middleware: who may use the service. Without a file of keys everybody may."""

from __future__ import annotations

import base64
import binascii
import uuid
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api_keys import ApiKey, KeyFile
from service.doors import came_in_by_admin_door
from service.errors import RateLimited, ServiceError, Unauthorized
from service.key_limits import KeyUses

OPEN_PATHS = frozenset(
    {
        "/",
        "/healthz",
        "/readyz",
        # What foreign protocols' servers and balancers probe.
        "/v2/health/live",
        "/v2/health/ready",
        "/label-studio/health",
    }
)
"""What anybody may GET: probes, and the page, which asks its user for a key."""

_STARTS = ("http.response.start", "websocket.http.response.start")
_OPEN_BELOW = "/static/"
_SUBPROTOCOL = "segvlm.key."
_URL_ALPHABET = str.maketrans("-_", "+/")

Problem = Callable[[Scope, ServiceError], Response]


class Access:
    """Lets a request in if its key is known and has not used up its limits; reads no body before.

    `scope["state"]` then has the key's name as `key`, and what it uses as `key_use`. A WebSocket is
    refused before it is accepted.
    """

    def __init__(
        self, app: ASGIApp, keys: KeyFile, problem: Problem, routes: Sequence[BaseRoute]
    ) -> None:
        self._app = app
        self._keys = keys
        self._uses = KeyUses()
        self._problem = problem
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or _is_open(scope):
            await self._app(scope, receive, send)
            return
        try:
            key = self._authenticate(scope)
        except Unauthorized as error:
            await self._refuse(scope, receive, send, error)
            return
        use = self._uses.of(key)
        scope.setdefault("state", {}).update(key=key.name, key_use=use)

        async def send_with_limits(message: Message) -> None:
            if message["type"] in _STARTS:
                MutableHeaders(scope=message).update(use.headers())
            await send(message)

        with ExitStack() as running:
            try:
                running.enter_context(self._uses.entered(key))
            except RateLimited as error:
                await self._refuse(scope, receive, send_with_limits, error)
                return
            await self._app(scope, receive, send_with_limits)

    def _authenticate(self, scope: Scope) -> ApiKey:
        brought = _brought_key(scope)
        if brought is None:
            raise Unauthorized("this service wants an API key, and the request brings none")
        key = self._keys.find(brought)
        if key is None:
            raise Unauthorized("the API key that the request brings is not known here")
        return key

    async def _refuse(
        self, scope: Scope, receive: Receive, send: Send, error: ServiceError
    ) -> None:
        self._name_route(scope)
        scope.setdefault("state", {}).setdefault("request_id", uuid.uuid4().hex)
        response = self._problem(scope, error)
        if scope["type"] == "http" or "websocket.http.response" in scope.get("extensions", {}):
            await response(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008, "reason": error.title})

    def _name_route(self, scope: Scope) -> None:
        """Say which route a refused request was for, as the router does that it never reaches."""
        for route in self._routes:
            if route.matches(scope)[0] is not Match.NONE:
                scope["route"] = route
                return


def _is_open(scope: Scope) -> bool:
    if came_in_by_admin_door(scope):
        return True
    if scope["type"] == "websocket" or scope["method"] not in ("GET", "HEAD"):
        return False
    return scope["path"] in OPEN_PATHS or scope["path"].startswith(_OPEN_BELOW)


def _brought_key(scope: Scope) -> str | None:
    """The first of: `Authorization`, `X-API-Key`, a WebSocket's subprotocol."""
    headers = Headers(scope=scope)
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    if scheme.lower() == "basic":  # whoever the user is, the key is the password
        return _decode(credentials.strip().rstrip("=")).partition(":")[2]
    if "x-api-key" in headers:
        return headers["x-api-key"].strip()
    for offered in scope.get("subprotocols", ()):
        if offered.startswith(_SUBPROTOCOL):
            return _decode(offered.removeprefix(_SUBPROTOCOL))
    return None


def _decode(encoded: str) -> str:
    """Base64 of either alphabet without its padding, which a subprotocol cannot hold; "" is
    nobody's key."""
    try:
        padded = encoded.translate(_URL_ALPHABET) + "=" * (-len(encoded) % 4)
        return base64.b64decode(padded, validate=True).decode()
    except (binascii.Error, ValueError):
        return ""
