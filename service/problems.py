"""How an error is written: RFC 9457, but under the paths of a foreign protocol as its clients
expect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import Response
from fastapi.responses import JSONResponse
from starlette.types import Scope

from service.errors import PROBLEM_MEDIA_TYPE, ServiceError

FOREIGN: Mapping[str, Callable[[ServiceError], dict[str, Any]]] = {}
"""By the first part of a path: the JSON body of an error there."""


def problem_response(scope: Scope, error: ServiceError) -> Response:
    """The answer to a request that failed; notes the reason, which is counted when it ends."""
    scope["state"]["reason"] = error.reason
    first = scope["path"].split("/", 2)[1] if "/" in scope["path"] else ""
    foreign = FOREIGN.get(first)
    body = error.problem(scope["state"]["request_id"]) if foreign is None else foreign(error)
    return JSONResponse(
        body,
        status_code=error.status,
        headers=error.headers,
        media_type=PROBLEM_MEDIA_TYPE if foreign is None else "application/json",
    )
