"""Files for browsers: read once at the start, served from memory. Here those of the page."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

from fastapi import Request, Response

from service.backends.base import ModelSpec
from service.settings import Settings

_DIRECTORY = Path(__file__).parent / "static"
INDEX = "index.html"
_MEDIA_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_HEADERS = {
    "Cache-Control": "no-cache",  # kept, and asked about each time: files of two versions never mix
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(self), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One file as it is sent; `etag` is strong and quoted."""

    body: bytes
    media_type: str
    etag: str

    @classmethod
    def of(cls, name: str, body: bytes) -> StaticFile:
        """`name` says what it is; its suffix must be one of those that are served."""
        etag = f'"{hashlib.blake2b(body, digest_size=16).hexdigest()}"'
        return cls(body, _MEDIA_TYPES[Path(name).suffix], etag)

    def is_known(self, if_none_match: str) -> bool:
        """Whether the header If-None-Match names what the client would get (RFC 9110, 13.1.2)."""
        known = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
        return bool(known & {self.etag, "*"})


def read_static_files(spec: ModelSpec, settings: Settings) -> Mapping[str, StaticFile]:
    """All files by their path within `static`; index.html says which model is served."""
    files = {}
    for path in sorted(_DIRECTORY.rglob("*")):
        if path.suffix in _MEDIA_TYPES:
            body = path.read_bytes()
            if path.name == INDEX:
                body = _describe(body.decode("utf-8"), spec, settings).encode("utf-8")
            name = path.relative_to(_DIRECTORY).as_posix()
            files[name] = StaticFile.of(name, body)
    return files


def send_file(request: Request, file: StaticFile, policy: str) -> Response:
    """The file, or that the client has it; `policy` is its Content-Security-Policy."""
    headers = {**_HEADERS, "Content-Security-Policy": policy, "ETag": file.etag}
    if file.is_known(request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    return Response(file.body, media_type=file.media_type, headers=headers)


def _describe(page: str, spec: ModelSpec, settings: Settings) -> str:
    """The page with what its scripts must know of this service, as attributes."""
    facts = {
        "model": spec.name,
        "version": spec.version,
        "threshold": f"{spec.threshold:g}",
        "max_body_bytes": str(settings.max_body_bytes),
        "max_expressions": str(settings.max_expressions),
        "max_expression_length": str(settings.max_expression_length),
        # A link brings no API key.
        "docs_hidden": "hidden" if settings.admin_port or settings.api_keys_file else "",
    }
    return Template(page).substitute({name: html.escape(fact) for name, fact in facts.items()})
