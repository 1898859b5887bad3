"""The error tree, its drawing, and what each of its members tells a client."""

from __future__ import annotations

import re

from service import errors
from service.errors import InvalidField, QueueFull, ServiceError, TooLarge, problem_kinds


def test_drawing_shows_exactly_the_tree() -> None:
    drawn = {
        name: (int(status), reason)
        for name, status, reason in re.findall(
            r"^ {8}(\w+) +(\d{3}) +(\w+)", errors.__doc__ or "", re.MULTILINE
        )
    }
    assert drawn == {kind.__name__: (kind.status, kind.reason) for kind in problem_kinds()}


def test_every_reason_is_its_own() -> None:
    reasons = [kind.reason for kind in problem_kinds()]
    assert len(reasons) == len(set(reasons))
    assert all(issubclass(kind, ServiceError) and kind.title for kind in problem_kinds())


def test_reasons_that_dashboards_rely_on() -> None:
    names = {"queue_full", "deadline", "disconnected", "draining", "too_large", "bad_image"}
    assert names <= {kind.reason for kind in problem_kinds()}


def test_problem_has_the_members_of_rfc_9457() -> None:
    problem = TooLarge("scale it down", limit=7).problem("abc")
    assert problem == {
        "type": "urn:segvlm:problem:too-large",
        "title": "The image is too large",
        "status": 413,
        "detail": "scale it down",
        "reason": "too_large",
        "request_id": "abc",
        "limit": 7,
    }


def test_invalid_fields_are_all_listed() -> None:
    error = InvalidField([("a", "too small"), ("b", "missing")])
    assert error.detail == "a: too small; b: missing"
    assert error.members["errors"][1] == {"field": "b", "message": "missing"}


def test_retry_after_is_whole_seconds_rounded_up_and_at_least_one() -> None:
    waits = [QueueFull(seconds).headers["Retry-After"] for seconds in (0.0, 0.2, 1.0, 1.01, 7.5)]
    assert waits == ["1", "1", "1", "2", "8"]
