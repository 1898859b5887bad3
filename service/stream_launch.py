"""Frames of one stream into the pipeline: how many at a time, and when the next."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from service.errors import InternalError, RateLimited, ServiceError
from service.frame_allowance import FrameAllowance
from service.pipeline import Answer, Pipeline
from service.settings import Settings
from service.stages import StageTimes
from service.stream_line import Frame, Line
from service.stream_pace import Pace
from service.stream_protocol import FrameTranslation

logger = logging.getLogger("segvlm.stream")

_NEWEST_AHEAD = 2  # frames: one at the model, one made ready; a third would only be older


class Launcher:
    """Launches what waits in `line`, at most `settings.stream_frames` at a time."""

    def __init__(
        self,
        line: Line,
        pipeline: Pipeline,
        allowance: FrameAllowance,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        self._line = line
        self._pipeline = pipeline
        self._allowance = allowance
        self._settings = settings
        self._clock = clock
        self._pace = Pace()
        self._timer: asyncio.TimerHandle | None = None

    def launch(self) -> None:
        """To be called whenever a frame has come or gone."""
        self._cancel_timer()
        while frame := self._line.waiting:
            delay = self._delay(frame)
            if delay is None:
                return
            try:
                delay = delay or self._allowance.wait()
            except RateLimited as error:
                self.settle(frame, error)
                continue
            if delay > 0:
                self._timer = asyncio.get_running_loop().call_later(delay, self.launch)
                return
            frame.held = self._allowance.begin(frame.arrived_at)
            frame.launched_at = self._clock()
            frame.outcome = asyncio.create_task(self._answer(frame))
            self._line.changed()

    def settle(self, frame: Frame, error: ServiceError) -> None:
        """Answer a frame that waits with an error."""
        frame.outcome = asyncio.get_running_loop().create_future()
        frame.outcome.set_result(error)
        self._line.changed()

    def stop(self) -> None:
        """Launch nothing later."""
        self._cancel_timer()
        self._allowance.give_up()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _delay(self, frame: Frame) -> float | None:
        """Seconds until it should be launched; None: not before another one is gone."""
        launched, limit = self._line.launched, self._settings.stream_frames
        if not launched:
            return 0.0
        if not frame.newest_only:
            return 0.0 if len(launched) < limit else None
        if len(launched) >= min(limit, _NEWEST_AHEAD):
            return None
        (ahead,) = launched
        assert ahead.launched_at is not None
        when = self._pace.next_launch(ahead.launched_at)
        return None if when is None else max(0.0, when - self._clock())

    async def _answer(self, frame: Frame) -> Answer | ServiceError:
        assert frame.configuration is not None and frame.launched_at is not None
        translation = FrameTranslation(frame.image, frame.configuration)
        times = StageTimes(self._clock)
        try:
            answer = await self._pipeline.answer(
                translation, times, self._settings.timeout, frame.admitted_at
            )
        except ServiceError as error:
            return error
        except Exception:
            logger.exception("an unexpected fault")
            return InternalError()
        prepared = times.seconds("decode") + times.seconds("preprocess")
        left_at = self._clock() - times.seconds("postprocess")
        self._pace.observe(frame.launched_at, prepared, left_at)
        return answer
