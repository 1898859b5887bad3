"""One request from its bytes to the bytes of its answer: decode, letterbox, model, masks.

What costs CPU runs in a small thread pool of our own, never on the event loop; the model runs in
the engine's thread. The same pipeline serves HTTP and the command line.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from model.preprocess import Letterbox, letterbox_image
from service import answers, mask_formats
from service.answers import Finding, FoundMask
from service.batcher import Completed
from service.engine import Engine, EngineSlot, ImageInput, TextInput
from service.errors import DeadlineExceeded, EngineStopped
from service.image_input import decode_image
from service.negotiation import AnswerKind, choose_answer
from service.request_parsing import RawRequest, SegmentTask, parse_task
from service.schemas import SegmentResult, Timings
from service.settings import Settings

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
    image: ImageInput
    texts: list[TextInput]
    geometry: Letterbox
    decode_seconds: float
    preprocess_seconds: float


@dataclass(frozen=True, slots=True)
class _Inferred:
    findings: list[Finding]
    queue_seconds: float
    inference_seconds: float


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

    async def answer(self, raw: RawRequest, accept: str) -> Answer:
        """Parse and serve an HTTP request; `accept` is its Accept header.

        The place in the queue comes first, so that an overloaded service refuses before it parses
        or decodes anything. Being cancelled drops whatever has not started. Raises any member of
        `service.errors` but those of the routing.
        """
        async with self._admitted() as place:
            task = await self._in_pool(functools.partial(parse_task, raw, self._settings))
            del raw  # the task has the image: two copies need not wait for the model
            return await self._segment(place, task, choose_answer(task, accept))

    async def segment(self, task: SegmentTask, kind: AnswerKind) -> Answer:
        """Serve a task that is already parsed; as `answer` otherwise."""
        async with self._admitted() as place:
            return await self._segment(place, task, kind)

    @asynccontextmanager
    async def _admitted(self) -> AsyncIterator[_Place]:
        """A place in the engine's queue until the answer, or until its deadline."""
        started = self._clock()
        seconds = self._settings.request_timeout
        try:
            async with asyncio.timeout(seconds):
                with self._engine.admit() as slot:
                    yield _Place(slot, started, started + seconds)
        except TimeoutError:
            raise DeadlineExceeded(seconds) from None

    async def _segment(self, place: _Place, task: SegmentTask, kind: AnswerKind) -> Answer:
        prepared = await self._in_pool(lambda: self._prepare(task))
        submitted = self._clock()
        outputs = await self._engine.submit(
            place.slot, prepared.image, prepared.texts, place.deadline
        )
        inferred = _collect(task, prepared, outputs, self._clock() - submitted)
        return await self._in_pool(lambda: self._finish(place, task, kind, prepared, inferred))

    async def _in_pool(self, work: Callable[[], Value]) -> Value:
        try:
            waiting = asyncio.get_running_loop().run_in_executor(self._pool, work)
        except RuntimeError as error:  # the pool is closed: the process is past its shutdown
            raise EngineStopped() from error
        return await waiting

    # -- in the pool ---------------------------------------------------------------------------

    def _prepare(self, task: SegmentTask) -> _Prepared:
        started = self._clock()
        pixels = decode_image(task.image, self._settings.max_pixels)
        decoded = self._clock()
        square, geometry = letterbox_image(pixels, self._engine.spec.image_size)
        image = ImageInput.of(square)
        texts = self._engine.tokenize(task.expressions)
        finished = self._clock()
        self._engine.metrics.decode_seconds.observe(decoded - started)
        self._engine.metrics.preprocess_seconds.observe(finished - decoded)
        return _Prepared(image, texts, geometry, decoded - started, finished - decoded)

    def _finish(
        self,
        place: _Place,
        task: SegmentTask,
        kind: AnswerKind,
        prepared: _Prepared,
        inferred: _Inferred,
    ) -> Answer:
        started = self._clock()
        masks = self._masks(task, prepared.geometry, inferred.findings, place.deadline)
        picture = b""
        results: list[SegmentResult] = []
        if kind.name == "json":
            results = [answers.describe(found, task.options) for found in masks]
        elif kind.name == "mask":
            picture = mask_formats.encode_png(next(masks).mask)
        else:
            # Decoded a second time: keeping every queued photo in full would cost far more memory.
            photo: NDArray[np.uint8] = decode_image(task.image, self._settings.max_pixels)
            picture = answers.draw_overlay(photo, masks, kind.media_type)
        finished = self._clock()
        self._engine.metrics.postprocess_seconds.observe(finished - started)
        timings = Timings(
            decode=_milliseconds(prepared.decode_seconds),
            preprocess=_milliseconds(prepared.preprocess_seconds),
            queue=_milliseconds(inferred.queue_seconds),
            inference=_milliseconds(inferred.inference_seconds),
            postprocess=_milliseconds(finished - started),
            total=_milliseconds(finished - place.started),
        )
        if kind.name == "json":
            spec = self._engine.spec
            picture = answers.render_json(spec, prepared.geometry, results, timings)
        return Answer(picture, kind.media_type, timings)

    def _masks(
        self, task: SegmentTask, geometry: Letterbox, findings: list[Finding], deadline: float
    ) -> Iterator[FoundMask]:
        """Each finding's mask, one at a time; a thread cannot be cancelled, so it looks itself."""
        threshold = task.options.threshold
        if threshold is None:
            threshold = self._engine.spec.threshold
        for finding in findings:
            if self._clock() > deadline:
                raise DeadlineExceeded(self._settings.request_timeout)
            yield answers.restore(finding, geometry, threshold)


def _collect(
    task: SegmentTask,
    prepared: _Prepared,
    outputs: list[Completed[NDArray[np.float32]]],
    elapsed: float,
) -> _Inferred:
    """Pair the outputs with their expressions; split `elapsed` into waiting and the model."""
    findings = [
        Finding(expression, text.truncated, output.result)
        for expression, text, output in zip(task.expressions, prepared.texts, outputs, strict=True)
    ]
    batches = {output.batch: output.seconds for output in outputs}
    inference = min(sum(batches.values()), elapsed)
    return _Inferred(findings, elapsed - inference, inference)


def _milliseconds(seconds: float) -> float:
    return round(1000 * seconds, 3)
