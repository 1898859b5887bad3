"""One request from its bytes to the bytes of its answer: decode, letterbox, model, masks.

What costs CPU runs in a small thread pool of our own, never on the event loop; the model runs in
the engine's thread. The same pipeline serves HTTP and the command line.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

from model.preprocess import letterbox_geometry, letterbox_picture
from service import answers, mask_formats
from service.answers import Finding, FoundMask
from service.engine import Engine, EngineSlot
from service.errors import DeadlineExceeded, EngineStopped
from service.image_input import decode_photo
from service.inference import ImageInput, Logits, TextInput, content_key
from service.negotiation import AnswerKind, choose_answer
from service.request_parsing import RawRequest, SegmentTask, parse_task, parse_timeout
from service.schemas import SegmentResult, Timings
from service.settings import Settings
from service.stages import StageTimes
from service.submission import Completed

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Answer:
    """The body of a successful answer."""

    body: bytes
    media_type: str
    timings: Timings


@dataclass(frozen=True, slots=True)
class _Place:
    """An admitted request: its slot, when it came and when it must be answered."""

    slot: EngineSlot
    started: float
    deadline: float


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request that is ready for the model."""

    task: SegmentTask
    kind: AnswerKind
    image: ImageInput
    texts: list[TextInput]


class Pipeline:
    """Shares one pool of `settings.image_threads` threads among all requests."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._clock = engine.clock
        self._pool = ThreadPoolExecutor(settings.image_threads, thread_name_prefix="segvlm-image")

    def close(self) -> None:
        """Drop what has not started; running work ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def answer(self, raw: RawRequest, accept: str, times: StageTimes) -> Answer:
        """Parse and serve an HTTP request; `accept` is its Accept header.

        The place in the queue comes first, so that an overloaded service refuses before it parses
        or decodes anything. Being cancelled drops whatever has not started. Raises any member of
        `service.errors` but those of the routing.
        """
        seconds = self._settings.timeout
        deadline = self._clock() + seconds
        asked = parse_timeout(raw.timeout)
        if asked is not None:
            deadline = min(deadline, raw.arrived_at + asked)
            seconds = min(seconds, asked)
        async with self._admitted(deadline, seconds) as place:

            def prepare() -> _Prepared:
                with times.stage("parse"):
                    task = parse_task(raw, self._settings)
                    kind = choose_answer(task, accept)
                return self._prepare(task, kind, times)

            return await self._serve(place, prepare, times)

    async def segment(self, task: SegmentTask, kind: AnswerKind) -> Answer:
        """Serve a task that is already parsed; as `answer` otherwise."""
        times = StageTimes(self._clock)
        seconds = self._settings.timeout
        async with self._admitted(self._clock() + seconds, seconds) as place:
            return await self._serve(place, lambda: self._prepare(task, kind, times), times)

    @asynccontextmanager
    async def _admitted(self, deadline: float, seconds: float) -> AsyncIterator[_Place]:
        """A place in the engine's queue until the answer, or until `deadline`, `seconds` away."""
        started = self._clock()
        try:
            async with asyncio.timeout(deadline - started):
                with self._engine.admit() as slot:
                    yield _Place(slot, started, deadline)
        except TimeoutError:
            raise DeadlineExceeded(seconds) from None

    async def _serve(
        self, place: _Place, prepare: Callable[[], _Prepared], times: StageTimes
    ) -> Answer:
        prepared = await self._in_pool(prepare)
        submitted = self._clock()
        outputs = await self._engine.submit(
            place.slot, prepared.image, prepared.texts, place.deadline
        )
        self._note_model(outputs, submitted, times)
        logits = [output.result for output in outputs]
        return await self._in_pool(lambda: self._finish(place, prepared, logits, times))

    async def _in_pool(self, work: Callable[[], Value]) -> Value:
        context = contextvars.copy_context()  # the request's id, for log lines
        try:
            waiting = asyncio.get_running_loop().run_in_executor(
                self._pool, functools.partial(context.run, work)
            )
        except RuntimeError as error:  # the pool is closed: the process is past its shutdown
            raise EngineStopped() from error
        return await waiting

    def _note_model(
        self, outputs: Sequence[Completed[Logits]], submitted: float, times: StageTimes
    ) -> None:
        """Split the time since `submitted` into the batches that held the request and waiting."""
        batches = {output.batch: output for output in outputs}
        waiting_since = submitted
        for number, output in sorted(batches.items()):
            times.add("queue", waiting_since, max(waiting_since, output.started_at))
            begun = max(waiting_since, output.started_at)  # of two batches at once, the later part
            waiting_since = max(begun, output.finished_at)
            times.add("inference", begun, waiting_since, batch=number)
        times.add("queue", waiting_since, max(waiting_since, self._clock()))

    # -- in the pool ---------------------------------------------------------------------------

    def _prepare(self, task: SegmentTask, kind: AnswerKind, times: StageTimes) -> _Prepared:
        metrics = self._engine.metrics
        key = content_key(task.image)
        image = self._engine.recall(key)
        if image is None:
            side = self._engine.spec.image_size
            with times.stage("decode"):
                photo = decode_photo(task.image, self._settings.max_pixels, least=side)
            metrics.decode_seconds.observe(times.seconds("decode"))
        with times.stage("preprocess"):
            if image is None:
                geometry = letterbox_geometry(photo.height, photo.width, side)
                image = ImageInput(key, letterbox_picture(photo.picture, geometry), geometry)
            texts = self._engine.tokenize(task.expressions)
        metrics.preprocess_seconds.observe(times.seconds("preprocess"))
        return _Prepared(task, kind, image, texts)

    def _finish(
        self, place: _Place, prepared: _Prepared, logits: Sequence[Logits], times: StageTimes
    ) -> Answer:
        task, kind = prepared.task, prepared.kind
        picture = b""
        results: list[SegmentResult] = []
        with times.stage("postprocess"):
            masks = self._masks(prepared, logits, place.deadline)
            if kind.name == "json":
                results = [answers.describe(found, task.options) for found in masks]
            elif kind.name == "mask":
                picture = mask_formats.encode_png(next(masks).mask)
            else:
                # Decoded again: keeping every queued photo in full would cost far more memory.
                photo = decode_photo(task.image, self._settings.max_pixels)
                picture = answers.draw_overlay(photo.picture, masks, kind.media_type)
        self._engine.metrics.postprocess_seconds.observe(times.seconds("postprocess"))
        timings = answers.timings(times, self._clock() - place.started)
        if kind.name == "json":
            geometry = prepared.image.geometry
            picture = answers.render_json(self._engine.spec, geometry, results, timings)
        return Answer(picture, kind.media_type, timings)

    def _masks(
        self, prepared: _Prepared, logits: Sequence[Logits], deadline: float
    ) -> Iterator[FoundMask]:
        """Each finding's mask, one at a time; a thread cannot be cancelled, so it looks itself."""
        task = prepared.task
        threshold = task.options.threshold
        if threshold is None:
            threshold = self._engine.spec.threshold
        for expression, text, each in zip(task.expressions, prepared.texts, logits, strict=True):
            if self._clock() > deadline:
                raise TimeoutError
            finding = Finding(expression, text.truncated, each)
            yield answers.restore(finding, prepared.image.geometry, threshold)
