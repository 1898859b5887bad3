"""What is known of a request when it has ended: one record for the metrics, the log and a trace."""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field

from service.stages import Stage

UNMATCHED = "unmatched"
"""The route of all paths that no route has; a label for each would let a scanner make thousands."""

current_request_id: ContextVar[str | None] = ContextVar("segvlm_request_id", default=None)
"""The id of the request that this task or pool thread works for."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request or stream, ended. Times are of `time.monotonic`, in seconds.

    `path` is percent-encoded, `route` a template such as `/segment`. `reason`: of
    `service.errors`, or how a stream ended; None if it got what it asked for. `traceparent`: W3C
    Trace Context's header. `key`: the name of the API key that it came with.
    `frames`: of a stream, how many and what became of them.
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
    frames: Mapping[str, int] = field(default_factory=dict)
