"""One stream, from its first configuration to its end: frames in, their answers out in order.

A reader and a sender share one `Line`. The reader takes messages and appends to it, the sender
sends what is due and takes it off, and both launch frames. Whichever ends first ends the stream;
what is then still in line is given up and, if the model has not begun with it, never run.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from starlette.types import Message
from starlette.websockets import WebSocket, WebSocketDisconnect

from service.engine import Engine
from service.errors import ClientGone, Draining, EngineStopped, InternalError, ServiceError
from service.frame_allowance import FrameAllowance
from service.frame_counts import FrameCounts
from service.pipeline import Pipeline
from service.schemas import StreamConfiguration
from service.settings import Settings
from service.stream_launch import Launcher
from service.stream_line import Frame, Line
from service.stream_protocol import (
    error_message,
    not_configured,
    parse_configuration,
    ready_message,
    result_message,
)
from service.streams import Streams

logger = logging.getLogger("segvlm.stream")

_LONGEST_LINE = 8  # entries; a client that takes no answers is read no further
_BREATH = 0.004  # seconds after a dropped frame: no camera has more than 250 in one
_FAREWELL = 5.0  # seconds to hand over the closing


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """Why a stream ended. `code`: to close with, None if nobody is left to be told."""

    kind: str
    code: int | None = None
    reason: str = ""


class _Ended(Exception):
    def __init__(self, end: StreamEnd) -> None:
        super().__init__(end.kind)
        self.end = end


_CLOSED = StreamEnd("closed")
_DRAINING = StreamEnd("draining", 1012, "this instance is stopping; connect again")
_STOPPED = StreamEnd("engine_stopped", 1011, "the model has stopped")
_INTERNAL = StreamEnd("internal", 1011, "an unexpected fault in the service")

# Codes with which the server itself has closed, below us.
_CLOSED_BELOW = {
    1002: StreamEnd("bad_message"),
    1007: StreamEnd("bad_message"),
    1009: StreamEnd("too_large"),
    1012: StreamEnd("draining"),
}
# What becomes of the frames in line when a stream ends; of all other ends it is the client's going.
_LEFTOVERS = {
    "draining": Draining.reason,
    "engine_stopped": EngineStopped.reason,
    "internal": InternalError.reason,
}


class StreamSession:
    """Serves an accepted `socket` until either side ends it."""

    def __init__(
        self,
        socket: WebSocket,
        engine: Engine,
        pipeline: Pipeline,
        settings: Settings,
        streams: Streams,
    ) -> None:
        self._socket = socket
        self._engine = engine
        self._settings = settings
        self._streams = streams
        self._request_id: str = socket.state.request_id
        self._line = Line()
        allowance = FrameAllowance(
            getattr(socket.state, "key_use", None), streams.metrics, settings.timeout, engine.clock
        )
        self._launcher = Launcher(self._line, pipeline, allowance, settings, engine.clock)
        self._counts = FrameCounts(streams.metrics)
        self._configuration: StreamConfiguration | None = None
        self._skipped = 0
        """Frames dropped before those that got an error, since the last result."""
        self._reading: asyncio.Task[None] | None = None
        self._last: StreamEnd | None = None
        """Nothing is read any more, and this is the end when all in line is sent."""

    async def run(self) -> None:
        """Serve and close; how it ended goes into the scope's state."""
        state, end = self._socket.state, _DRAINING  # cut off at the end of the shutdown
        state.frames = self._counts.told
        try:
            end = await self._serve()
        finally:
            state.reason = None if end is _CLOSED else end.kind
            await self._give_up(end)
        await self._close(end)

    async def _serve(self) -> StreamEnd:
        end = _INTERNAL
        try:
            async with asyncio.TaskGroup() as group:
                self._reading = group.create_task(self._read())
                group.create_task(self._send_what_is_due())
                group.create_task(self._drain())
        except* _Ended as ended:
            (end, *_) = (each.end for each in ended.exceptions if isinstance(each, _Ended))
        except* Exception as faults:
            logger.error("an unexpected fault", exc_info=faults)
        return end

    async def _drain(self) -> None:
        await self._streams.draining.wait()
        self._wind_up(_DRAINING, Draining())

    def _wind_up(self, end: StreamEnd, error: ServiceError) -> None:
        """Read no more, refuse what has not been launched, answer the rest, and end."""
        assert self._reading is not None
        self._reading.cancel()
        self._launcher.stop()
        while frame := self._line.waiting:
            self._settle(frame, error)
        self._last = self._last or end
        self._line.changed()

    async def _give_up(self, end: StreamEnd) -> None:
        """Cancel and count what is left in line."""
        self._launcher.stop()
        frames = list(self._line.frames)
        working = [frame.outcome for frame in frames if frame.outcome is not None]
        for each in working:
            each.cancel()
        if working:
            await asyncio.wait(working)
        for frame in frames:
            self._leave(frame)
            self._counts.failed(_LEFTOVERS.get(end.kind, ClientGone.reason))

    async def _close(self, end: StreamEnd) -> None:
        if end.code is None:
            return
        try:
            async with asyncio.timeout(_FAREWELL):
                await self._socket.close(end.code, end.reason)
        except (TimeoutError, WebSocketDisconnect):
            pass  # it has gone, or reads nothing: what is below us closes the connection

    # -- the reader ----------------------------------------------------------------------------

    async def _read(self) -> None:
        while True:
            message = await self._message()
            if message["type"] == "websocket.disconnect":
                raise _Ended(_CLOSED_BELOW.get(message["code"], _CLOSED))
            # With one message in hand, not before the next: so a client that leaves is noticed.
            await self._line.until(self._room)
            text = message.get("text")
            if text is not None:
                self._configure(text)
            elif self._take(message["bytes"]):
                await asyncio.sleep(_BREATH)

    def _room(self) -> bool:
        """Whether one more message may be taken; until then the network holds others back."""
        if len(self._line) >= _LONGEST_LINE:
            return False
        if self._configuration is None or self._configuration.newest:
            return True
        return sum(1 for _ in self._line.frames) < self._settings.stream_frames

    async def _message(self) -> Message:
        idle = self._settings.stream_idle_timeout
        while True:
            try:
                async with asyncio.timeout(idle):
                    return await self._socket.receive()
            except TimeoutError:
                if not len(self._line):
                    told = f"nothing came for {idle:g} s (SEGVLM_STREAM_IDLE_TIMEOUT)"
                    raise _Ended(StreamEnd("idle", 1008, told)) from None

    def _configure(self, text: str) -> None:
        try:
            self._configuration = parse_configuration(text, self._settings)
        except ServiceError as error:
            self._line.append(error_message(None, error, self._request_id))
        else:
            self._line.append(ready_message(self._engine.spec))

    def _take(self, image: bytes) -> bool:
        """Put a frame in line; whether another one was dropped for it."""
        frame = Frame(self._counts.received(), image, self._configuration, self._engine.clock())
        superseded = self._line.waiting
        try:
            if self._configuration is None:
                raise not_configured()
            self._streams.buffered.take(len(image))
        except ServiceError as error:
            frame.image = b""
            self._launcher.settle(frame, error)
            self._line.append(frame)
            return False
        dropped = superseded is not None and superseded.newest_only
        if superseded is not None and dropped:
            frame.skipped = superseded.skipped + 1
            self._leave(superseded)
            self._counts.dropped()
        self._line.append(frame)
        self._launcher.launch()
        return dropped

    # -- the sender ----------------------------------------------------------------------------

    async def _send_what_is_due(self) -> None:
        line = self._line
        while True:
            await line.until(lambda: line.due is not None or self._last is not None)
            entry = line.due
            if isinstance(entry, Frame):
                await self._deliver(entry)
            elif entry is not None:
                await self._send(entry)
                line.remove(entry)
            else:
                assert self._last is not None
                raise _Ended(self._last)
            self._launcher.launch()

    async def _deliver(self, frame: Frame) -> None:
        assert frame.outcome is not None
        outcome = await frame.outcome
        skipped = self._skipped + frame.skipped
        if isinstance(outcome, ServiceError):
            await self._send(error_message(frame.number, outcome, self._request_id))
            self._skipped = skipped
            self._leave(frame)
            self._counts.failed(outcome.reason)
            if isinstance(outcome, Draining | EngineStopped):
                self._wind_up(_DRAINING if isinstance(outcome, Draining) else _STOPPED, outcome)
        else:
            limited = frame.held is not None
            await self._send(result_message(frame.number, skipped, limited, outcome.payload))
            self._skipped = 0
            self._leave(frame)
            self._counts.answered(self._engine.clock() - frame.admitted_at)

    async def _send(self, text: str) -> None:
        try:
            async with asyncio.timeout(self._settings.stream_idle_timeout):
                await self._socket.send_text(text)
        except TimeoutError:
            raise _Ended(StreamEnd("slow_reader")) from None
        except WebSocketDisconnect:  # the client, or the server at the end of the shutdown
            raise _Ended(StreamEnd(self._last.kind) if self._last else _CLOSED) from None

    # -- both ----------------------------------------------------------------------------------

    def _settle(self, frame: Frame, error: ServiceError) -> None:
        self._streams.buffered.give_back(len(frame.image))
        frame.image = b""
        self._launcher.settle(frame, error)

    def _leave(self, frame: Frame) -> None:
        """It leaves the line, and its bytes the memory; its caller counts it."""
        self._line.remove(frame)
        self._streams.buffered.give_back(len(frame.image))
