"""`/docs` in a real browser: the API is shown and tried, and no other host is asked."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import FilePayload, Route

from tests.service.page.visits import Running, Visit


def only_own_host(tab: Visit, url: str) -> None:
    """Whatever is asked of another host fails, and the fixture finds it among `hosts`."""

    def guard(route: Route) -> None:
        if route.request.url.startswith((url, "data:", "blob:")):
            route.continue_()
        else:
            route.abort()

    tab.page.route("**/*", guard)


def test_operations_are_shown_and_can_be_tried(
    serve: Callable[..., Running], visit: Callable[..., Visit]
) -> None:
    running = serve()
    tab = visit(f"{running.url}docs")
    only_own_host(tab, running.url)
    tab.page.reload()
    document = running.service.app.openapi()
    operations = [each for path in document["paths"].values() for each in path.values()]
    tab.page.locator(".opblock").nth(len(operations) - 1).wait_for()
    assert tab.page.locator(".opblock").count() == len(operations)
    shown = tab.page.locator(".opblock-summary-description").all_inner_texts()
    assert sorted(shown) == sorted(each["summary"] for each in operations)
    probe = tab.page.locator("#operations-default-healthz_healthz_get")
    probe.locator("button.opblock-summary-control").click()
    probe.locator("text=Try it out").click()
    probe.locator("button.execute").click()
    probe.locator(".live-responses-table td.response-col_status", has_text="200").wait_for()


def test_photo_can_be_sent_from_there(
    serve: Callable[..., Running], visit: Callable[..., Visit], small_photo: bytes
) -> None:
    tab = visit(f"{serve().url}docs")
    segment = tab.page.locator("#operations-default-segment_segment_post")
    segment.locator("button.opblock-summary-control").click()
    segment.locator("text=Try it out").click()
    photo = FilePayload(name="photo.png", mimeType="image/png", buffer=small_photo)
    segment.locator("input[type=file]").set_input_files(photo)
    segment.locator("button.execute").click()
    table = segment.locator(".live-responses-table")
    table.locator("td.response-col_status", has_text="200").wait_for()
    assert '"score"' in table.inner_text()


def test_json_is_answered_as_it_stands_there(
    serve: Callable[..., Running], visit: Callable[..., Visit]
) -> None:
    tab = visit(f"{serve().url}docs")
    segment = tab.page.locator("#operations-default-segment_segment_post")
    segment.locator("button.opblock-summary-control").click()
    segment.locator("text=Try it out").click()
    segment.locator("select[aria-label='Request content type']").select_option("application/json")
    segment.locator("button.execute").click()
    table = segment.locator(".live-responses-table")
    table.locator("td.response-col_status", has_text="200").wait_for()
    assert '"the red circle"' in table.inner_text()


def test_link_leads_there(serve: Callable[..., Running], visit: Callable[..., Visit]) -> None:
    tab = visit(serve().url)
    tab.page.click("header >> text=API")
    tab.page.locator(".opblock").first.wait_for()


def test_no_link_where_a_browser_could_not_follow_it(
    make_service: Callable[..., Any], tmp_path: Any
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"anna {'0' * 64}\n", encoding="utf-8")
    for options in ({"admin_port": 1}, {"api_keys_file": keys}):
        page = make_service(**options).client.get("/").text
        assert page.count('<a href="docs" hidden>') == 1
        assert page.count("<span hidden>: see") == 1
    assert "hidden>API" not in make_service().client.get("/").text


@pytest.mark.parametrize(("port", "told"), [(0, "true"), (1, "false")])
def test_what_is_at_another_port_cannot_be_tried(
    make_service: Callable[..., Any], port: int, told: str
) -> None:
    service = make_service(admin_port=port)
    page = service.app.state.docs_files["index.html"].body.decode()
    assert f'data-try="{told}"' in page


def test_files_are_packaged(repo_root: Path) -> None:
    project = tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))
    assert "api_docs_files/*" in project["tool"]["setuptools"]["package-data"]["service"]
    names = {path.name for path in (repo_root / "service" / "api_docs_files").iterdir()}
    assert names == {"index.html", "start.js"}


def test_browser_may_do_no_more_than_it_must(service: Any) -> None:
    for path in ("/docs", "/docs/start.js", "/docs/swagger-ui-bundle.js"):
        headers = service.client.get(path).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["connect-src"] == "'self'"
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        tag = {"If-None-Match": headers["etag"]}
        assert service.client.get(path, headers=tag).status_code == 304
