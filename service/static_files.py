"""The page's files: read once at the start, served from memory."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

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


@dataclass(frozen=True, slots=True)
class StaticFile:
    """One file as it is sent; `etag` is strong and quoted."""

    body: bytes
    media_type: str
    etag: str

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
            etag = f'"{hashlib.blake2b(body, digest_size=16).hexdigest()}"'
            name = path.relative_to(_DIRECTORY).as_posix()
            files[name] = StaticFile(body, _MEDIA_TYPES[path.suffix], etag)
    return files


def _describe(page: str, spec: ModelSpec, settings: Settings) -> str:
    """The page with what its scripts must know of this service, as attributes."""
    facts = {
        "model": spec.name,
        "version": spec.version,
        "threshold": f"{spec.threshold:g}",
        "max_body_bytes": str(settings.max_body_bytes),
        "max_expressions": str(settings.max_expressions),
        "max_expression_length": str(settings.max_expression_length),
    }
    return Template(page).substitute({name: html.escape(fact) for name, fact in facts.items()})
