"""When each stage of one request began and ended: the answer's timings, the log and the traces."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Stage:
    """One stretch of time; seconds of one monotonic clock. `detail` is for traces."""

    name: str
    started_at: float
    finished_at: float
    detail: dict[str, int] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.finished_at - self.started_at


class StageTimes:
    """The stages of one request, in the order in which they ended."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.stages: list[Stage] = []

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the body, also of one that fails."""
        started = self.clock()
        try:
            yield
        finally:
            self.add(name, started, self.clock())

    def add(self, name: str, started_at: float, finished_at: float, **detail: int) -> None:
        """Note a stage that was timed elsewhere."""
        self.stages.append(Stage(name, started_at, finished_at, detail))

    def seconds(self, name: str) -> float:
        """Of all stages of that name together, 0.0 if there were none."""
        return sum(stage.seconds for stage in self.stages if stage.name == name)
