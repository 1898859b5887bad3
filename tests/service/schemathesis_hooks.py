"""What `schemathesis run` must know beyond the OpenAPI document; named in schemathesis.toml."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.hook
def before_call(
    context: schemathesis.HookContext, case: schemathesis.Case, kwargs: dict[str, Any]
) -> None:
    """Mend what neither a document nor the tool can say of `POST /segment`."""
    if not isinstance(case.body, dict):
        return
    if isinstance(case.query, dict):  # an option that stands in both is an error
        for name in case.body.keys() & case.query.keys():
            del case.query[name]
    if case.media_type == "multipart/form-data" and "expression" in case.body:
        # A form knows only text: the number 7 arrives as a good expression, "7".
        expressions = case.body["expression"]
        texts = expressions if isinstance(expressions, list) else []
        case.body["expression"] = [text for text in texts if isinstance(text, str)]
