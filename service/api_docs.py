"""The files of `/docs`: Swagger UI, which the package fastapi-offline carries, and its start."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from string import Template

from service.settings import Settings
from service.static_files import INDEX, StaticFile

_OWN = Path(__file__).parent / "api_docs_files"
_ICON = Path(__file__).parent / "static" / "icon.svg"
_PACKAGE = "fastapi_offline"
_SWAGGER = ("swagger-ui-bundle.js", "swagger-ui.css")

DOCS_PATHS = frozenset(
    {"/docs", *(f"/docs/{name}" for name in ("start.js", "icon.svg", *_SWAGGER))}
)
"""What the page and its files are at."""


def read_docs_files(settings: Settings) -> Mapping[str, StaticFile]:
    """All files by their path below `/docs`, the page as index.html.

    Raises RuntimeError if the package with Swagger UI is not installed.
    """
    page = Template((_OWN / INDEX).read_text(encoding="utf-8"))
    # At the second port there is nothing to try: what is described is at the first.
    files = {INDEX: page.substitute({"try": str(not settings.admin_port).lower()}).encode()}
    for path in (_OWN / "start.js", _ICON, *(_swagger() / name for name in _SWAGGER)):
        files[path.name] = path.read_bytes()
    return {name: StaticFile.of(name, body) for name, body in files.items()}


def _swagger() -> Path:
    # Not imported: only its files are of use.
    found = find_spec(_PACKAGE)
    if found is None or found.origin is None:
        raise RuntimeError(
            "fastapi-offline, which carries the files of /docs, is not installed; run `make` again "
            "or pip install '.[serve]'"
        )
    return Path(found.origin).parent / "static"
