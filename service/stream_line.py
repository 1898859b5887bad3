"""What a stream still owes its client, in the order in which it will be sent."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from service.errors import ServiceError
from service.pipeline import Answer
from service.schemas import StreamConfiguration


@dataclass(eq=False, slots=True)
class Frame:
    """One image that came. `number` counts the binary messages of its stream from 0.

    outcome: None while the frame waits. skipped: frames that were dropped in its favour. held:
    seconds that it waited for its API key's rate; None if it need not.
    """

    number: int
    image: bytes
    configuration: StreamConfiguration | None
    arrived_at: float
    outcome: asyncio.Future[Answer | ServiceError] | None = None
    launched_at: float | None = None
    skipped: int = 0
    held: float | None = None

    @property
    def admitted_at(self) -> float:
        """From when on its time counts: what its key's rate held it back is not ours."""
        return self.arrived_at + (self.held or 0.0)

    @property
    def newest_only(self) -> bool:
        """A newer frame may take its place while it waits."""
        return self.configuration is not None and self.configuration.newest


class Line:
    """Frames and texts, the oldest first. Each leaves when it was sent, or was superseded."""

    def __init__(self) -> None:
        self._entries: deque[Frame | str] = deque()
        self._change = asyncio.Event()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def due(self) -> Frame | str | None:
        """What is to be sent next; None while that is a frame that has not been launched."""
        head = self._entries[0] if self._entries else None
        return None if isinstance(head, Frame) and head.outcome is None else head

    @property
    def frames(self) -> Iterator[Frame]:
        return (entry for entry in self._entries if isinstance(entry, Frame))

    @property
    def launched(self) -> list[Frame]:
        """The frames that are worked on, or are done and wait to be sent."""
        return [frame for frame in self.frames if frame.launched_at is not None]

    @property
    def waiting(self) -> Frame | None:
        """The frame to launch next."""
        return next((frame for frame in self.frames if frame.outcome is None), None)

    def append(self, entry: Frame | str) -> None:
        self._entries.append(entry)
        self.changed()

    def remove(self, entry: Frame | str) -> None:
        self._entries.remove(entry)
        self.changed()

    def changed(self) -> None:
        """Wake whoever waits in `until`."""
        self._change.set()
        self._change = asyncio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a change after which `condition` holds; not at all if it does already."""
        while not condition():
            await self._change.wait()
