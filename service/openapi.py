"""What the OpenAPI document says beyond the routes' signatures: request bodies and problems."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.errors import PROBLEM_MEDIA_TYPE, ServiceError, problem_kinds
from service.schemas import Problem, SegmentJson, SegmentOptions

_REF = "#/components/schemas/{model}"


def _form_schema() -> dict[str, Any]:
    options = SegmentOptions.model_json_schema()["properties"]
    return {
        "type": "object",
        "required": ["image", "expression"],
        "properties": {
            "image": {
                "type": "string",
                "format": "binary",
                "description": "A JPEG, PNG, WebP, GIF or BMP file.",
            },
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
    not_here = {"not_found", "method_not_allowed", "disconnected", "foreign_origin", "streams_full"}
    kinds: dict[int, list[type[ServiceError]]] = {}
    for kind in problem_kinds():
        if kind.reason not in not_here:
            kinds.setdefault(kind.status, []).append(kind)
    problem = {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}}
    picture = {"schema": {"type": "string", "format": "binary"}}
    responses: dict[int | str, dict[str, Any]] = {
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
        }
    }
    for status in sorted(kinds):
        described = "; ".join(f"`{kind.reason}`: {kind.title}" for kind in kinds[status])
        responses[status] = {"description": described, "content": problem}
    return responses


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
        for model in (Problem, SegmentJson):
            schema = model.model_json_schema(ref_template=_REF)
            schemas.update(schema.pop("$defs", {}))
            schemas[model.__name__] = schema
        app.openapi_schema = document
    return app.openapi_schema
