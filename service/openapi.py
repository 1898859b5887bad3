"""What the OpenAPI document says beyond the routes' signatures: request bodies and problems."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from service.access import OPEN_PATHS
from service.errors import PROBLEM_MEDIA_TYPE, ServiceError, problem_kinds
from service.foreign_schemas import FOREIGN_SCHEMAS, NamedError, RoboflowError
from service.inference_v2.schemas import InferError, InferRequest
from service.request_parsing import MULTIPART
from service.schemas import IMAGE_URL, Problem, SegmentJson, SegmentOptions
from service.settings import Settings

_REF = "#/components/schemas/{model}"
_EXPRESSION = {"$ref": _REF.format(model="Expression")}
_RETRY_AFTER = {
    "description": "Seconds until another try is worth it.",
    "schema": {"type": "integer", "minimum": 1},
}
_EXAMPLE = {
    # A PNG of 32 x 32 pixels: a red circle beside a blue rectangle.
    "image": "iVBORw0KGgoAAAANSUhEUgAAACAAAAAgAgMAAAAOFJJnAAAACVBMVEX/////AAAAAP+3l+0cAAAAQ0lEQVR4"
    "2mNgoB1gDGFgYGBgYGEQYXQ4tILhGxODA4MAAwMDAxNMBRMjAwMLqggm4z8Dwx80qQMMHyCMN/8PMNAUAAAfkQnOL00S"
    "zwAAAABJRU5ErkJggg==",
    "expressions": ["the red circle"],
}

_NOT_OF_A_REQUEST = frozenset(
    {
        *("not_found", "method_not_allowed", "disconnected"),
        *("foreign_origin", "streams_full", "upgrade_required"),
    }
)
_OF_ANY_REQUEST = frozenset({"internal"})
_OF_LOCKED_PATHS = frozenset({"unauthorized", "rate_limited"})
FOREIGN_ERRORS: Mapping[str, type[BaseModel]] = {
    "v2": InferError,
    "hf": NamedError,
    "label-studio": NamedError,
    "sam3": RoboflowError,
}
"""By the first part of a path: the type of what `service.problems.FOREIGN` writes."""


def _options_as_text() -> dict[str, dict[str, Any]]:
    """The options' schemas where each is text, which has no null."""
    options: dict[str, dict[str, Any]] = SegmentOptions.model_json_schema()["properties"]
    options["threshold"]["example"] = 0.5  # else `/docs` takes 1, above which nothing is
    for schema in options.values():
        for alternative in schema.pop("anyOf", ()):
            if alternative == {"type": "null"}:
                del schema["default"]
            else:
                schema.update(alternative)
    return options


def _form_schema() -> dict[str, Any]:
    return {
        "type": "object",
        "additionalProperties": False,
        "required": ["expression"],
        "oneOf": [{"required": ["image"]}, {"required": ["image_url"]}],
        "properties": {
            "image": {
                "type": "string",
                "format": "binary",
                "description": "A JPEG, PNG, WebP, GIF or BMP file.",
            },
            # The example is what `/docs` sends besides a file unless it is told otherwise.
            "image_url": {"type": "string", "description": IMAGE_URL, "example": ""},
            "expression": {
                "type": "array",
                "items": _EXPRESSION,
                "minItems": 1,
                "description": "What to find; repeat the field for several.",
                "example": ["the dog"],
            },
            **_options_as_text(),
        },
    }


def _query_parameters() -> list[dict[str, Any]]:
    parameters = []
    for name, schema in _options_as_text().items():
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
            MULTIPART: {
                "schema": _form_schema(),
                "encoding": {"expression": {"style": "form", "explode": True}},
            },
            "application/json": {
                "schema": {"$ref": _REF.format(model="SegmentJson")},
                "example": _EXAMPLE,
            },
        },
    },
}


def segment_responses() -> dict[int | str, dict[str, Any]]:
    """Every problem that `POST /segment` can answer, and the pictures."""
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
        **_problems(_error_content(None)),
    }


def stream_responses() -> dict[int | str, dict[str, Any]]:
    """What a plain request to a stream is answered."""
    described = _problems(_error_content(None), only={"upgrade_required"})
    for response in described.values():
        response["headers"] = {
            "Upgrade": {
                "description": "What is spoken here.",
                "schema": {"type": "string", "const": "websocket"},
            }
        }
    return described


def foreign_responses(error: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Every problem of a foreign protocol's route, in its own form."""
    return _problems(_error_content(error), without={"not_acceptable"})


def foreign_body(document: type[BaseModel], *media_types: str) -> dict[str, Any]:
    """An operation's body: `document` as JSON, or a file of one of `media_types` as it is."""
    file = {"schema": {"type": "string", "format": "binary"}}
    content = {"application/json": {"schema": {"$ref": _REF.format(model=document.__name__)}}}
    content.update((media_type, file) for media_type in media_types)
    return {"requestBody": {"required": True, "content": content}}


def _error_content(foreign: type[BaseModel] | None) -> dict[str, Any]:
    if foreign is None:
        return {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}}
    return {"application/json": {"schema": {"$ref": _REF.format(model=foreign.__name__)}}}


def _problems(
    content: dict[str, Any], without: Set[str] = frozenset(), only: Set[str] | None = None
) -> dict[int | str, dict[str, Any]]:
    """By status: which problems have it; unless told `only`, not those that no route answers."""
    not_here = {*_NOT_OF_A_REQUEST, *without} - (only or set())
    kinds: dict[int, list[type[ServiceError]]] = {}
    for kind in problem_kinds():
        if kind.reason not in not_here and (only is None or kind.reason in only):
            kinds.setdefault(kind.status, []).append(kind)
    described: dict[int | str, dict[str, Any]] = {}
    for status in sorted(kinds):
        description = "; ".join(f"`{kind.reason}`: {kind.title}" for kind in kinds[status])
        described[status] = {"description": description, "content": content}
        if status in (429, 503):
            described[status]["headers"] = {"Retry-After": _RETRY_AFTER}
    return described


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
        _describe_limits(document, app.state.settings)
        _describe_access(document, app.state.settings)
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


def _describe_limits(document: dict[str, Any], settings: Settings) -> None:
    """What this service's settings allow of expressions."""
    schemas = document["components"]["schemas"]
    schemas["Expression"] = {
        "type": "string",
        "pattern": r"\S",
        "maxLength": settings.max_expression_length,
        "description": "What to find, in words.",
    }
    form = document["paths"]["/segment"]["post"]["requestBody"]["content"][MULTIPART]["schema"]
    body = schemas["SegmentJson"]
    for expressions in (form["properties"]["expression"], body["properties"]["expressions"]):
        expressions.update(items=_EXPRESSION, maxItems=settings.max_expressions)
    schemas["RoboflowJson"]["properties"]["prompts"]["maxItems"] = settings.max_expressions
    schemas["RoboflowPrompt"]["properties"]["text"] = _EXPRESSION


def _describe_access(document: dict[str, Any], settings: Settings) -> None:
    """Keys, which every service can be told to want, and what any request may be answered."""
    document["components"]["securitySchemes"] = {
        "bearer": {"type": "http", "scheme": "bearer"},
        "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "basic": {"type": "http", "scheme": "basic", "description": "The key as the password."},
    }
    keys: list[dict[str, list[str]]] = [{"bearer": []}, {"header": []}, {"basic": []}]
    if settings.api_keys_file is None:
        keys.insert(0, {})
    for path, operations in document["paths"].items():
        content = _error_content(FOREIGN_ERRORS.get(path.split("/")[1]))
        for method, operation in operations.items():
            reasons = _OF_ANY_REQUEST
            if method != "get" or path not in OPEN_PATHS:
                operation["security"] = keys
                reasons |= _OF_LOCKED_PATHS
            responses = {
                str(status): each for status, each in _problems(content, only=reasons).items()
            }
            operation["responses"] = dict(sorted((responses | operation["responses"]).items()))
