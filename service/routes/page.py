"""`GET /`: the page to try the model on, and the files it is made of."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from service.errors import RouteUnknown
from service.static_files import INDEX, send_file

router = APIRouter(include_in_schema=False)  # for people; the document is for programs

# Nothing comes from or goes to another host, and nothing that was put into the page runs.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
_UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "The client has this file."}}
_UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"description": "The page has no such file."}}


@router.api_route("/", methods=["GET", "HEAD"], responses=_UNCHANGED, response_class=Response)
async def page(request: Request) -> Response:
    """The page itself."""
    return send_file(request, request.app.state.static_files[INDEX], _POLICY)


@router.api_route(
    "/static/{path:path}",
    methods=["GET", "HEAD"],
    responses=_UNCHANGED | _UNKNOWN,
    response_class=Response,
)
async def static(request: Request, path: str) -> Response:
    """A script, a style sheet, a sample. Raises RouteUnknown."""
    file = request.app.state.static_files.get(path)
    if file is None or path == INDEX:
        raise RouteUnknown(f"nothing is at {request.url.path}; the page at / names its files")
    return send_file(request, file, _POLICY)
