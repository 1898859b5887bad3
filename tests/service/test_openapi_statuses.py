"""docs/openapi.json is the document; every status that can occur is in it, with its true body."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from service.access import OPEN_PATHS
from service.errors import ServiceError, problem_kinds
from service.openapi import FOREIGN_ERRORS
from service.problems import FOREIGN, problem_response
from tests.service.openapi_snapshot import SNAPSHOT, describe_default_service

ELSEWHERE = {  # answered where no operation is, or to a WebSocket, or to nobody
    *("not_found", "method_not_allowed", "disconnected"),
    *("foreign_origin", "streams_full", "upgrade_required"),
}
RENEW = "python -m tests.service.openapi_snapshot"
DOCUMENT: dict[str, Any] = json.loads(SNAPSHOT.read_text(encoding="utf-8"))
OPERATIONS = [
    pytest.param(method, path, operation, id=f"{method} {path}")
    for path, operations in DOCUMENT["paths"].items()
    for method, operation in operations.items()
]
of_each_operation = pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS)


def test_snapshot(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change of the API is seen in the file's difference, before its users see it."""
    monkeypatch.setenv("SEGVLM_MAX_EXPRESSIONS", "7")  # the document is of no one's environment
    now = describe_default_service()
    assert now == SNAPSHOT.read_text(encoding="utf-8"), (
        f"the API is described otherwise than in docs/openapi.json; if that is meant, run `{RENEW}`"
    )


def reasons_of(method: str, path: str) -> set[str]:
    """What can go wrong there: the whole tree where a body is read, else little."""
    if method == "post":
        reasons = {kind.reason for kind in problem_kinds()} - ELSEWHERE
        return reasons if path == "/segment" else reasons - {"not_acceptable"}
    reasons = {"unauthorized", "rate_limited"} if path not in OPEN_PATHS else set()
    return reasons | {"internal"} | ({"upgrade_required"} if path == "/stream" else set())


@of_each_operation
def test_every_status_is_described(method: str, path: str, operation: dict[str, Any]) -> None:
    kinds = [kind for kind in problem_kinds() if kind.reason in reasons_of(method, path)]
    responses = operation["responses"]
    assert {str(kind.status) for kind in kinds} <= set(responses)
    for kind in kinds:
        assert f"`{kind.reason}`" in responses[str(kind.status)]["description"]


def an_error(kind: type[ServiceError]) -> ServiceError:
    """One of this kind, made of whatever its constructor wants."""
    values: dict[str, Any] = {
        "detail": "what to do",
        "limit": 1,
        "seconds": 1.5,
        "retry_after": 2.0,
        "faults": [("field", "message")],
        "fault": "the fault",
    }
    names = inspect.signature(kind).parameters.values()
    return kind(**{each.name: values[each.name] for each in names if each.default is each.empty})


def errors_at(method: str, path: str) -> Iterator[ServiceError]:
    for kind in problem_kinds():
        if kind.reason in reasons_of(method, path):
            yield an_error(kind)


@of_each_operation
def test_errors_are_what_their_schema_says(
    method: str, path: str, operation: dict[str, Any]
) -> None:
    for error in errors_at(method, path):
        response = problem_response({"path": path, "state": {"request_id": "id"}}, error)
        described = operation["responses"][str(error.status)]
        (media_type,) = described["content"]
        assert response.headers["content-type"] == media_type
        schema = {
            **described["content"][media_type]["schema"],
            "components": DOCUMENT["components"],
        }
        Draft202012Validator(schema).validate(json.loads(response.body))
        for name in described.get("headers", ()):
            assert name in response.headers


def test_foreign_errors_have_a_type_each() -> None:
    assert FOREIGN_ERRORS.keys() == FOREIGN.keys()


@of_each_operation
def test_who_wants_a_key_says_so(method: str, path: str, operation: dict[str, Any]) -> None:
    is_open = method == "get" and path in OPEN_PATHS
    assert ("security" in operation) != is_open
    assert ("401" in operation["responses"]) != is_open


def test_keys_are_wanted_where_there_is_a_file(make_service: Any, tmp_path: Any) -> None:
    path = tmp_path / "keys"
    path.write_text(f"anna {'0' * 64}\n", encoding="utf-8")
    locked = make_service(api_keys_file=path).app.openapi()["paths"]["/segment"]["post"]
    assert {} in DOCUMENT["paths"]["/segment"]["post"]["security"], "a key is optional"
    assert {} not in locked["security"]
    assert [list(way) for way in locked["security"]] == [["bearer"], ["header"], ["basic"]]


def test_limits_are_those_of_the_settings(make_service: Any) -> None:
    document = make_service(max_expressions=3, max_expression_length=20).app.openapi()
    content = document["paths"]["/segment"]["post"]["requestBody"]["content"]
    form = content["multipart/form-data"]["schema"]["properties"]["expression"]
    body = document["components"]["schemas"]["SegmentJson"]["properties"]["expressions"]
    assert (form["maxItems"], body["maxItems"]) == (3, 3)
    assert document["components"]["schemas"]["Expression"]["maxLength"] == 20
