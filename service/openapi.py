"""What the OpenAPI document says beyond the routes' signatures: request bodies and problems."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from service.errors import PROBLEM_MEDIA_TYPE, ServiceError, problem_kinds
from service.foreign_schemas import FOREIGN_SCHEMAS
from service.inference_v2.schemas import InferError, InferRequest
from service.schemas import IMAGE_URL, Problem, SegmentJson, SegmentOptions

_REF = "#/components/schemas/{model}"


_NOT_OF_A_REQUEST = frozenset(
    {"not_found", "method_not_allowed", "disconnected", "foreign_origin", "streams_full"}
)


def _form_schema() -> dict[str, Any]:
    options = SegmentOptions.model_json_schema()["properties"]
    return {
        "type": "object",
        "required": ["expression"],
        "oneOf": [{"required": ["image"]}, {"required": ["image_url"]}],
        "properties": {
            "image": {
                "type": "string",
                "format": "binary",
                "description": "A JPEG, PNG, WebP, GIF or BMP file.",
            },
            "image_url": {"type": "string", "minLength": 1, "description": IMAGE_URL},
            "expression": {
                "type": "array",
                "items": {"type": "string"},
                "minItems": 1,
                "description": "What to find; repeat the field for several.",
                "example": ["the dog"],
            },
            **options,
        },
    }


def _query_parameters() -> list[dict[str, Any]]:
    parameters = []
    for name, schema in SegmentOptions.model_json_schema()["properties"].items():
        description = schema.pop("description")
        parameters.append(
            {"name": name, "in": "query", "description": description, "schema": schema}
        )
    return parameters


SEGMENT_OPERATION: dict[str, Any] = {
    "parameters": _query_parameters(),
    "requestBody": {
        "required": True,
        "content": {
            # A repeated field, not one with commas: forms encode arrays by repetition.
            "multipart/form-data": {
                "schema": _form_schema(),
                "encoding": {"expression": {"style": "form", "explode": True}},
            },
            "application/json": {"schema": {"$ref": _REF.format(model="SegmentJson")}},
        },
    },
}


def segment_responses() -> dict[int | str, dict[str, Any]]:
    """Every problem that `POST /segment` can answer, and the pictures."""
    problem = {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}}
    picture = {"schema": {"type": "string", "format": "binary"}}
    return {
        200: {
            "description": "A result for each expression, or a picture: the mask itself for "
            "`Accept: image/png`, the photo with the masks for `format=overlay`.",
            "content": {"image/png": picture, "image/jpeg": picture},
            "headers": {
                "Server-Timing": {
                    "description": "Milliseconds of each stage.",
                    "schema": {"type": "string"},
                }
            },
        },
        **_problems(problem),
    }


def foreign_responses(error: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Every problem of a foreign protocol's route, in its own form."""
    schema = {"schema": {"$ref": _REF.format(model=error.__name__)}}
    return _problems({"application/json": schema}, without={"not_acceptable"})


def foreign_body(document: type[BaseModel], *media_types: str) -> dict[str, Any]:
    """An operation's body: `document` as JSON, or a file of one of `media_types` as it is."""
    file = {"schema": {"type": "string", "format": "binary"}}
    content = {"application/json": {"schema": {"$ref": _REF.format(model=document.__name__)}}}
    content.update((media_type, file) for media_type in media_types)
    return {"requestBody": {"required": True, "content": content}}


def _problems(
    content: dict[str, Any], without: Set[str] = frozenset()
) -> dict[int | str, dict[str, Any]]:
    """By status: which problems have it, but for those that no known route answers."""
    not_here = {*_NOT_OF_A_REQUEST, *without}
    kinds: dict[int, list[type[ServiceError]]] = {}
    for kind in problem_kinds():
        if kind.reason not in not_here:
            kinds.setdefault(kind.status, []).append(kind)
    return {
        status: {
            "description": "; ".join(f"`{kind.reason}`: {kind.title}" for kind in kinds[status]),
            "content": content,
        }
        for status in sorted(kinds)
    }


def describe_api(app: FastAPI) -> dict[str, Any]:
    """The document of `app`, with the schemas that only `$ref`s above name. Cached by the app."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title,
            version=app.version,
            summary=app.summary,
            description=app.description,
            routes=app.routes,
        )
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        models: tuple[type[BaseModel], ...] = (
            *(Problem, SegmentJson, InferError, InferRequest),
            *FOREIGN_SCHEMAS,
        )
        for model in models:
            schema = model.model_json_schema(ref_template=_REF)
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        _leave_out_validation(document)
        app.openapi_schema = document
    return app.openapi_schema


def _leave_out_validation(document: dict[str, Any]) -> None:
    """FastAPI's own 422 of routes with parameters in their path: text is always valid there."""
    own = "HTTPValidationError"
    content = {"application/json": {"schema": {"$ref": _REF.format(model=own)}}}
    for operations in document["paths"].values():
        for operation in operations.values():
            if operation["responses"].get("422", {}).get("content") == content:
                del operation["responses"]["422"]
    for name in (own, "ValidationError"):
        document["components"]["schemas"].pop(name, None)
