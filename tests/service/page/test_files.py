"""The page's files over HTTP: what they are sent as, and what a browser may do with them."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

STATIC = Path(__file__).resolve().parents[3] / "service" / "static"
FILES = sorted(path.relative_to(STATIC).as_posix() for path in STATIC.rglob("*") if path.is_file())
MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "jpg": "image/jpeg",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


def test_page_says_what_is_served(make_service: Callable[..., Any]) -> None:
    service = make_service(max_body_bytes=1234, max_expressions=7, max_expression_length=55)
    page = service.client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert '<p class="model"><span>fake</span> 1</p>' in page.text
    assert 'data-threshold="0.5"' in page.text
    assert 'data-max-body-bytes="1234"' in page.text
    assert 'data-max-expressions="7"' in page.text
    assert 'maxlength="55"' in page.text
    assert "$" not in page.text


def test_all_that_the_page_names_is_there(service: Any) -> None:
    """Its scripts' imports too; relative, so that it works below a proxy's path."""
    page = service.client.get("/").text
    named = set(re.findall(r'(?:src|href)="(static/[^"]+)"', page))
    scripts = [name for name in named if name.endswith(".js")]
    while scripts:
        source = service.client.get(f"/{scripts.pop()}").text
        found = {f"static/{name}" for name in re.findall(r'from "\./([\w.]+)"', source)} - named
        named |= found
        scripts += found
    assert {f"static/{name}" for name in FILES} - {"static/index.html"} == named
    for name in named:
        answer = service.client.get(f"/{name}")
        assert answer.status_code == 200
        assert answer.headers["content-type"] == MEDIA_TYPES[name.rsplit(".", 1)[1]]


@pytest.mark.parametrize("path", ["/", "/static/page.js", "/static/samples/cat.jpg"])
def test_browser_may_do_no_more_than_it_must(service: Any, path: str) -> None:
    headers = service.client.get(path).headers
    policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]
    assert "camera=(self)" in headers["permissions-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.mark.parametrize("path", ["/", "/static/page.css"])
def test_known_file_is_not_sent_again(service: Any, path: str) -> None:
    first = service.client.get(path)
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "no-cache"
    for known in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = service.client.get(path, headers={"If-None-Match": known})
        assert again.status_code == 304
        assert again.content == b""
        assert again.headers["etag"] == tag
        assert "content-security-policy" in again.headers
    assert service.client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200


def test_page_of_another_model_has_another_tag(make_service: Callable[..., Any]) -> None:
    tags = {make_service(max_expressions=n).client.get("/").headers["etag"] for n in (3, 4)}
    assert len(tags) == 2


def test_head_is_the_get_without_its_body(service: Any) -> None:
    get, head = service.client.get("/"), service.client.head("/")
    assert head.status_code == 200
    assert head.content == b""
    same = ("content-length", "content-type", "etag")
    assert [head.headers[name] for name in same] == [get.headers[name] for name in same]


@pytest.mark.parametrize(
    "path", ["none.js", "index.html", "../static_files.py", "..%2fapp.py", "samples", ""]
)
def test_other_files_are_not_served(service: Any, path: str) -> None:
    answer = service.client.get(f"/static/{path}")
    assert answer.status_code == 404
    assert answer.json()["reason"] == "not_found"


def test_page_is_counted_by_route(service: Any) -> None:
    service.client.get("/")
    service.client.get("/static/page.js")
    service.client.get("/static/none.js")
    for route, code in (
        ("/", "200"),
        ("/static/{path:path}", "200"),
        ("/static/{path:path}", "404"),
    ):
        assert service.metric("segvlm_requests_total", route=route, code=code) == 1


def test_page_is_not_in_the_document_for_programs(service: Any) -> None:
    paths = service.client.get("/openapi.json").json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/static")]


def test_files_are_packaged(repo_root: Path) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = project["tool"]["setuptools"]["package-data"]["service"]
    # A * of setuptools does not cross a folder's border.
    lost = [
        name
        for name in FILES
        if not any(
            fnmatch(f"static/{name}", pattern) and pattern.count("/") == name.count("/") + 1
            for pattern in patterns
        )
    ]
    assert FILES and not lost


def test_samples_are_small_and_their_origin_is_told(repo_root: Path) -> None:
    notice = (repo_root / "NOTICE").read_text(encoding="utf-8")
    samples = sorted((STATIC / "samples").iterdir())
    assert samples
    for path in samples:
        assert path.stat().st_size <= 60_000
        assert f"samples/{path.name}" in notice
        assert max(Image.open(path).size) <= 640
