"""What is known of a request when it has ended: one record for the metrics, the log and a trace."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from service.stages import Stage

UNMATCHED = "unmatched"
"""The route of all paths that no route has; a label for each would let a scanner make thousands."""

current_request_id: ContextVar[str | None] = ContextVar("segvlm_request_id", default=None)
"""The id of the request that this task or pool thread works for."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request, ended. Times are of `time.monotonic`, in seconds.

    `path` is percent-encoded, `route` a template such as `/segment`. `reason`: of
    `service.errors`, None if it got what it asked for. `traceparent`: W3C Trace Context's header.
    `key`: the name of the API key that it came with.
    """

    request_id: str
    method: str
    path: str
    route: str
    status: int
    reason: str | None
    traceparent: str | None
    key: str | None
    started_at: float
    finished_at: float
    stages: tuple[Stage, ...]
