"""One request from its bytes to the bytes of its answer: decode, letterbox, model, masks.

What costs CPU runs in a small thread pool of our own, never on the event loop; the model runs in
the engine's thread. The same pipeline serves every protocol and the command line; a
`service.translation` says how a request is read and its answer written.
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
from service import answers
from service.answers import Finding, FoundMask
from service.engine import Engine, EngineSlot
from service.errors import DeadlineExceeded, EngineStopped
from service.image_input import decode_photo
from service.image_url import UrlImages
from service.inference import ImageInput, Logits, TextInput, content_key
from service.memory_budget import MemoryBudget, MemoryShare
from service.request_parsing import ImageUrl, SegmentTask
from service.schemas import Timings
from service.settings import Settings
from service.stages import StageTimes
from service.submission import Completed
from service.translation import Findings, Payload, Translation
from service.url_policy import UrlPolicy

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Answer:
    """A successful answer and what it took."""

    payload: Payload
    timings: Timings


@dataclass(slots=True)
class _Place:
    """An admitted request: its slot, when it came and when it must be answered."""

    slot: EngineSlot
    started: float
    deadline: float
    seconds: float
    """What its deadline is called in the answer to whom it is too short."""
    limit: asyncio.Timeout
    memory: MemoryShare

    def shorten(self, seconds: float) -> None:
        """Answer within `seconds` of the start, if that is sooner."""
        sooner = self.started + seconds
        if sooner < self.deadline:
            when = self.limit.when()
            assert when is not None
            self.limit.reschedule(when - (self.deadline - sooner))
            self.deadline, self.seconds = sooner, seconds


@dataclass(frozen=True, slots=True)
class _Prepared:
    """A request that is ready for the model."""

    task: SegmentTask
    file: bytes
    image: ImageInput
    texts: list[TextInput]


class Pipeline:
    """Shares one pool of `settings.image_threads` threads among all requests."""

    def __init__(
        self, engine: Engine, settings: Settings, budget: MemoryBudget | None = None
    ) -> None:
        """`budget`: what images that are fetched share with the bodies of requests."""
        hosts = tuple(settings.url_hosts.split(",")) if settings.url_hosts else ()
        self.url_images = UrlImages(UrlPolicy(hosts, settings.max_body_bytes))
        self._budget = budget or MemoryBudget(settings.max_buffered_bytes)
        self._engine = engine
        self._settings = settings
        self._clock = engine.clock
        self._pool = ThreadPoolExecutor(settings.image_threads, thread_name_prefix="segvlm-image")

    def close(self) -> None:
        """Drop what has not started; running work ends by itself."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def answer(
        self,
        translation: Translation,
        times: StageTimes,
        timeout: float | None = None,
        arrived_at: float = 0.0,
    ) -> Answer:
        """Read, serve and write one request.

        The place in the queue comes first, so that an overloaded service refuses before it parses
        or decodes anything. Being cancelled drops whatever has not started. Raises any member of
        `service.errors` but those of the routing.

        Args:
            timeout: seconds from `arrived_at`, by the engine's clock, that the caller will wait.
                It can only shorten what the settings allow; so can the task's own.
        """
        seconds = self._settings.timeout
        deadline = self._clock() + seconds
        if timeout is not None:
            deadline = min(deadline, arrived_at + timeout)
            seconds = min(seconds, timeout)
        async with self._admitted(deadline, seconds) as place:
            return await self._serve(place, translation, times)

    @asynccontextmanager
    async def _admitted(self, deadline: float, seconds: float) -> AsyncIterator[_Place]:
        """A place in the engine's queue until the answer, or until `deadline`, `seconds` away."""
        started = self._clock()
        memory = MemoryShare(self._budget)
        try:
            async with asyncio.timeout(deadline - started) as limit:
                with self._engine.admit() as slot:
                    place = _Place(slot, started, deadline, seconds, limit, memory)
                    yield place
        except TimeoutError:
            raise DeadlineExceeded(place.seconds) from None
        finally:
            memory.release()

    async def _serve(self, place: _Place, translation: Translation, times: StageTimes) -> Answer:
        read = await self._in_pool(lambda: self._read(translation, times))
        task = read.task if isinstance(read, _Prepared) else read
        if task.timeout is not None:
            place.shorten(task.timeout)
        prepared = read if isinstance(read, _Prepared) else await self._fetch(place, read, times)
        submitted = self._clock()
        outputs = await self._engine.submit(
            place.slot, prepared.image, prepared.texts, place.deadline
        )
        self._note_model(outputs, submitted, times)
        logits = [output.result for output in outputs]
        return await self._in_pool(
            lambda: self._finish(place, translation, prepared, logits, times)
        )

    async def _fetch(self, place: _Place, task: SegmentTask, times: StageTimes) -> _Prepared:
        """The image from where it lies: no thread of the pool waits for another host."""
        assert isinstance(task.image, ImageUrl)
        with times.stage("fetch"):
            file = await self.url_images.fetch(task.image.url, place.memory)
        return await self._in_pool(lambda: self._prepare(task, file, times))

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

    def _read(self, translation: Translation, times: StageTimes) -> _Prepared | SegmentTask:
        """Ready for the model, or a task whose image must be fetched first."""
        with times.stage("parse"):
            task = translation.read()
        if isinstance(task.image, ImageUrl):
            return task
        return self._prepare(task, task.image, times)

    def _prepare(self, task: SegmentTask, file: bytes, times: StageTimes) -> _Prepared:
        metrics = self._engine.metrics
        key = content_key(file)
        image = self._engine.recall(key)
        if image is None:
            side = self._engine.spec.image_size
            with times.stage("decode"):
                photo = decode_photo(file, self._settings.max_pixels, least=side)
            metrics.decode_seconds.observe(times.seconds("decode"))
        with times.stage("preprocess"):
            if image is None:
                geometry = letterbox_geometry(photo.height, photo.width, side)
                image = ImageInput(key, letterbox_picture(photo.picture, geometry), geometry)
            texts = self._engine.tokenize(task.expressions)
        metrics.preprocess_seconds.observe(times.seconds("preprocess"))
        return _Prepared(task, file, image, texts)

    def _finish(
        self,
        place: _Place,
        translation: Translation,
        prepared: _Prepared,
        logits: Sequence[Logits],
        times: StageTimes,
    ) -> Answer:
        file = prepared.file
        begun = self._clock()

        @functools.cache  # the header says the same as the body
        def timings() -> Timings:
            now = self._clock()
            return answers.timings(times, now - place.started, postprocess=now - begun)

        payload = translation.write(
            Findings(
                spec=self._engine.spec,
                task=prepared.task,
                geometry=prepared.image.geometry,
                masks=self._masks(prepared, logits, place.deadline),
                timings=timings,
                photo=lambda: decode_photo(file, self._settings.max_pixels).picture,
            )
        )
        taken = timings()
        finished = self._clock()
        times.add("postprocess", begun, finished)
        self._engine.metrics.postprocess_seconds.observe(finished - begun)
        return Answer(payload, taken)

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
            yield answers.restore(
                finding, prepared.image.geometry, threshold, self._engine.spec.score_map
            )
