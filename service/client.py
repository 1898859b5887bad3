"""Ask a SegVLM service from Python: `Client`, and `AsyncClient` for an event loop.

    with Client("http://localhost:8000") as client:
        answer = client.segment("photo.jpg", ["the dog"])
        answer.results[0].mask                                  bool (H, W)

Needs httpx, numpy, pillow and pycocotools (`pip install segvlm[client]`), no model and no server.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar

import httpx

from service.client_exchange import (
    Came,
    ImageLike,
    Pause,
    Question,
    Reply,
    Retry,
    Send,
    answer_seconds,
    checked_url,
    conversation,
    headers,
    http_timeout,
    image_bytes,
)
from service.client_results import (
    Found,
    MalformedAnswer,
    Segmentation,
    SegVLMError,
    ServiceRefused,
    Unreachable,
    coco_document,
)

__all__ = [
    "AsyncClient",
    "Client",
    "Found",
    "ImageLike",
    "MalformedAnswer",
    "Outcome",
    "Retry",
    "SegVLMError",
    "Segmentation",
    "ServiceRefused",
    "Unreachable",
    "coco_document",
]

Source = TypeVar("Source", bound=ImageLike)


@dataclass(frozen=True)
class Outcome(Generic[Source]):
    """What became of one of many images: an answer, or why there is none.

    `index`: its place among the images, from 0. `error`: a SegVLMError of the call, an OSError or
    ValueError of the image; anything else is a fault of ours, and costs no other image either.
    """

    index: int
    image: Source
    answer: Segmentation | None
    error: Exception | None


class Client:
    """Asks a service, blocking. Safe to share among threads; close it, or use it in a `with`.

    Args:
        url: such as http://localhost:8000, with a path in front of it if a proxy adds one.
        api_key: where the service wants one.
        timeout: seconds for one try; the service is told, so it stops working when nobody waits.
        retry: when to ask again.
    """

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        retry: Retry | None = None,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._timeout, self._retry, self._sleep = timeout, retry or Retry(), sleep
        self._http = httpx.Client(
            base_url=checked_url(url),
            headers=headers(api_key),
            timeout=http_timeout(timeout),
            transport=transport,
            limits=httpx.Limits(max_connections=None),
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def segment(
        self,
        image: ImageLike,
        expressions: Sequence[str],
        *,
        threshold: float | None = None,
        include_probability: bool = False,
    ) -> Segmentation:
        """The mask of each expression. Raises SegVLMError, and OSError for an unreadable file."""
        asked = Question(image_bytes(image), _listed(expressions), threshold, include_probability)
        talk = conversation(asked, self._timeout, self._retry, time.monotonic)
        came: Came = None
        while True:
            try:
                step = talk.send(came)
            except StopIteration as ended:
                answer: Segmentation = ended.value
                return answer
            came = None
            if isinstance(step, Pause):
                self._sleep(step.seconds)
                continue
            try:
                came = self._send(step)
            except httpx.RequestError as error:
                came = error

    def _send(self, send: Send) -> Reply:
        end = time.monotonic() + answer_seconds(self._timeout)
        body = bytearray()
        with self._http.stream("POST", "segment", **send.arguments) as response:
            for chunk in response.iter_bytes():
                body += chunk
                if time.monotonic() > end:  # httpx bounds each read, not all of them
                    raise httpx.ReadTimeout("the answer trickles in; its time is up")
        return Reply.of(response, bytes(body))

    def segment_many(
        self,
        images: Iterable[Source],
        expressions: Sequence[str],
        *,
        concurrency: int = 8,
        threshold: float | None = None,
    ) -> Iterator[Outcome[Source]]:
        """The same expressions on many images, answered in their order.

        At most `concurrency` are read and on their way at a time, and no image is taken from
        `images` before one of these was consumed. One that fails is an outcome with an error and
        leaves the others alone. A generator that is closed early waits for what is under way.
        """
        listed = _listed(expressions)

        def one(index: int, image: Source) -> Outcome[Source]:
            try:
                answer = self.segment(image, listed, threshold=threshold)
            except Exception as error:  # whatever it is, the others go on
                return Outcome(index, image, None, error)
            return Outcome(index, image, answer, None)

        with ThreadPoolExecutor(_positive(concurrency), "segvlm-client") as pool:
            running: deque[Future[Outcome[Source]]] = deque()
            try:
                for index, image in enumerate(images):
                    running.append(pool.submit(one, index, image))
                    while len(running) >= concurrency or (running and running[0].done()):
                        yield running.popleft().result()
                while running:
                    yield running.popleft().result()
            finally:
                for each in running:
                    each.cancel()


class AsyncClient:
    """As `Client`, for an event loop; close it, or use it in an `async with`."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None = None,
        timeout: float = 30.0,
        retry: Retry | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._timeout, self._retry = timeout, retry or Retry()
        self._http = httpx.AsyncClient(
            base_url=checked_url(url),
            headers=headers(api_key),
            timeout=http_timeout(timeout),
            transport=transport,
            limits=httpx.Limits(max_connections=None),
        )

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def segment(
        self,
        image: ImageLike,
        expressions: Sequence[str],
        *,
        threshold: float | None = None,
        include_probability: bool = False,
    ) -> Segmentation:
        """See `Client.segment`. Reading a file or encoding pixels happens in a thread."""
        content = await asyncio.to_thread(image_bytes, image)
        asked = Question(content, _listed(expressions), threshold, include_probability)
        talk = conversation(asked, self._timeout, self._retry, time.monotonic)
        came: Came = None
        while True:
            try:
                step = talk.send(came)
            except StopIteration as ended:
                answer: Segmentation = ended.value
                return answer
            came = None
            if isinstance(step, Pause):
                await asyncio.sleep(step.seconds)
                continue
            try:
                async with asyncio.timeout(answer_seconds(self._timeout)):
                    response = await self._http.post("segment", **step.arguments)
                came = Reply.of(response, response.content)
            except TimeoutError:
                came = httpx.ReadTimeout("its time is up")
            except httpx.RequestError as error:
                came = error

    async def segment_many(
        self,
        images: Iterable[Source],
        expressions: Sequence[str],
        *,
        concurrency: int = 8,
        threshold: float | None = None,
    ) -> AsyncIterator[Outcome[Source]]:
        """See `Client.segment_many`; closed early, it cancels what is under way."""
        listed, most = _listed(expressions), _positive(concurrency)

        async def one(index: int, image: Source) -> Outcome[Source]:
            try:
                answer = await self.segment(image, listed, threshold=threshold)
            except Exception as error:  # whatever it is, the others go on
                return Outcome(index, image, None, error)
            return Outcome(index, image, answer, None)

        running: deque[asyncio.Task[Outcome[Source]]] = deque()
        try:
            for index, image in enumerate(images):
                running.append(asyncio.create_task(one(index, image)))
                while len(running) >= most or (running and running[0].done()):
                    yield await running.popleft()
            while running:
                yield await running.popleft()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)


def _listed(expressions: Sequence[str]) -> list[str]:
    """A lone string would be taken letter by letter."""
    if isinstance(expressions, str):
        raise ValueError(f"expressions is a list: [{expressions!r}]")
    return list(expressions)


def _positive(concurrency: int) -> int:
    if concurrency < 1:
        raise ValueError(f"concurrency must be at least 1, not {concurrency}")
    return concurrency
