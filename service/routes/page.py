"""`GET /`: the page to try the model on, and the files it is made of."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from service.errors import RouteUnknown
from service.static_files import INDEX, StaticFile

router = APIRouter(include_in_schema=False)  # for people; the document is for programs

# Nothing comes from or goes to another host, and nothing that was put into the page runs.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'"
)
_HEADERS = {
    "Cache-Control": "no-cache",  # kept, and asked about each time: files of two versions never mix
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
_UNCHANGED: dict[int | str, dict[str, Any]] = {304: {"description": "The client has this file."}}
_UNKNOWN: dict[int | str, dict[str, Any]] = {404: {"description": "The page has no such file."}}


@router.api_route("/", methods=["GET", "HEAD"], responses=_UNCHANGED, response_class=Response)
async def page(request: Request) -> Response:
    """The page itself."""
    return _send(request, request.app.state.static_files[INDEX])


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
    return _send(request, file)


def _send(request: Request, file: StaticFile) -> Response:
    headers = {**_HEADERS, "ETag": file.etag}
    if file.is_known(request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.media_type, headers=headers)
