"""The OpenAPI document describes what the service really takes and answers."""

from __future__ import annotations

import re
from typing import Any

from service.errors import problem_kinds
from service.schemas import SegmentOptions


def operation(service: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    document = service.client.get("/openapi.json").json()
    return document, document["paths"]["/segment"]["post"]


def test_both_bodies_are_described(service: Any) -> None:
    document, segment = operation(service)
    content = segment["requestBody"]["content"]
    form = content["multipart/form-data"]["schema"]
    assert set(form["required"]) == {"expression"}
    either = [{"required": ["image"]}, {"required": ["image_url"]}]
    assert form["oneOf"] == either
    assert form["properties"]["image"]["format"] == "binary"
    assert form["properties"]["expression"]["type"] == "array"
    body = document["components"]["schemas"]["SegmentJson"]
    assert set(body["required"]) == {"expressions"}
    assert body["oneOf"] == either
    options = set(SegmentOptions.model_fields)
    assert options < set(form["properties"])
    assert options < set(body["properties"])
    assert {parameter["name"] for parameter in segment["parameters"]} == options


def test_every_problem_is_described(service: Any) -> None:
    document, segment = operation(service)
    elsewhere = {403, 404, 405, 426, 499}  # of streams; no such path or method; nobody reads a 499
    statuses = {str(kind.status) for kind in problem_kinds()} - set(map(str, elsewhere))
    described = {
        status
        for status, response in segment["responses"].items()
        if "application/problem+json" in response.get("content", {})
    }
    assert described == statuses
    assert "Problem" in document["components"]["schemas"]


def test_every_reference_leads_somewhere(service: Any) -> None:
    document, _ = operation(service)

    def references(node: Any) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if "$ref" in node else []
            return own + [found for value in node.values() for found in references(value)]
        if isinstance(node, list):
            return [found for value in node for found in references(value)]
        return []

    known = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    found = references(document)
    assert len(found) > 10
    assert set(found) <= known


def test_document_is_for_the_model_that_is_served(service: Any) -> None:
    document, segment = operation(service)
    assert document["info"]["title"] == "SegVLM"
    assert "fake" in document["info"]["summary"]
    assert {"image/png", "image/jpeg", "application/json"} <= set(
        segment["responses"]["200"]["content"]
    )


def test_docs_page(service: Any) -> None:
    page = service.client.get("/docs")
    assert page.status_code == 200
    for named in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert service.client.get(f"/{named}").status_code == 200, named
    assert "openapi.json" in service.client.get("/docs/start.js").text
    for path in ("index.html", "../app.py", "redoc.standalone.js", ""):
        assert service.client.get(f"/docs/{path}", follow_redirects=False).status_code != 200
