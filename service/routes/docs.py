"""`GET /docs`: the API to click through, from this host alone."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from service.errors import RouteUnknown
from service.static_files import INDEX, send_file

router = APIRouter(include_in_schema=False)  # for people; the document is for programs

# Swagger UI draws its arrows from data URLs.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "The client has this file."}}
_UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"description": "There is no such file."}}


@router.api_route("/docs", methods=["GET", "HEAD"], responses=_UNCHANGED, response_class=Response)
async def docs(request: Request) -> Response:
    """The page itself."""
    return send_file(request, request.app.state.docs_files[INDEX], _POLICY)


@router.api_route(
    "/docs/{name}",
    methods=["GET", "HEAD"],
    responses=_UNCHANGED | _UNKNOWN,
    response_class=Response,
)
async def docs_file(request: Request, name: str) -> Response:
    """A script or a style sheet. Raises RouteUnknown."""
    file = request.app.state.docs_files.get(name)
    if file is None or name == INDEX:
        raise RouteUnknown(f"nothing is at {request.url.path}; the page at /docs names its files")
    return send_file(request, file, _POLICY)
