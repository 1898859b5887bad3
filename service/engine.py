"""The model behind one door: caches, batcher and backend.

    with engine.admit() as slot:                                  one image's place in the queue
        outputs = await engine.submit(slot, image, texts)         one output for each expression

An image's features are computed once, whatever the number of its expressions or of the batches
that they fall into, and are kept by content hash for later requests.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.backends.base import Floats, LoadedModel, ModelSpec
from service.batch_policy import BatchPolicy
from service.batcher import (
    Batcher,
    BatcherDraining,
    BatcherFull,
    BatcherStopped,
    BatchReport,
    Completed,
    DeadlinePassed,
    Slot,
)
from service.errors import (
    DeadlineExceeded,
    Draining,
    EngineStopped,
    InferenceFailed,
    QueueFull,
    ServiceError,
)
from service.feature_cache import FeatureCache
from service.metrics import Metrics
from service.settings import Settings

Scalar = TypeVar("Scalar", bound=np.generic)
Pyramid = tuple[Floats, Floats, Floats]
TextFeatures = tuple[Floats, Floats, NDArray[np.bool_]]


@dataclass(eq=False, slots=True)
class ImageInput:
    """A letterboxed image, uint8 (S, S, 3), and the hash of its pixels.

    `features` belongs to the worker thread: it outlives an eviction from the cache, so that a
    request with many expressions never encodes its image twice.
    """

    square: NDArray[np.uint8]
    key: bytes
    features: Pyramid | None = None

    @classmethod
    def of(cls, square: NDArray[np.uint8]) -> ImageInput:
        """Hash `square`, uint8 (S, S, 3); about a millisecond, so not for the event loop."""
        return cls(square, hashlib.blake2b(square.tobytes(), digest_size=32).digest())


@dataclass(frozen=True, slots=True)
class TextInput:
    """One expression's tokens, int64 (L,), and whether the expression was cut to fit."""

    tokens: NDArray[np.int64]
    truncated: bool
    key: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.tokens.tobytes())


@dataclass(frozen=True, slots=True)
class _Pair:
    image: ImageInput
    text: TextInput


Logits = NDArray[np.float32]
EngineSlot = Slot[_Pair, Logits]


class Engine:
    """Serves one model. `start()` once, then any number of submissions, then `stop()`.

    All methods but `submit` may be called from any thread; `submit` from an event loop.
    """

    def __init__(
        self,
        model: LoadedModel,
        settings: Settings,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.metrics = metrics
        self.clock = clock
        self._model = model
        self._timeout = settings.request_timeout
        self._max_batch_size = settings.max_batch_size
        self._images: FeatureCache[Pyramid] = FeatureCache(settings.image_cache_bytes, _nbytes)
        self._texts: FeatureCache[TextFeatures] = FeatureCache(settings.text_cache_bytes, _nbytes)
        self._batcher: Batcher[_Pair, Logits] = Batcher(
            self._run,
            BatchPolicy(self._max_batch_size, settings.batch_delay),
            settings.max_images,
            warm_up=self._warm_up,
            on_batch=self._observe,
            clock=clock,
        )
        metrics.watch(depth=lambda: self._batcher.depth, ready=lambda: self.ready)
        metrics.model_info.labels(self.spec.name, self.spec.version, model.backend.name).set(1)

    @property
    def spec(self) -> ModelSpec:
        """The model's name, version and sizes."""
        return self._model.spec

    @property
    def backend_name(self) -> str:
        """What runs the model, such as `onnx-cpu`."""
        return self._model.backend.name

    @property
    def alive(self) -> bool:
        """The worker has not died; once False it stays so."""
        return self._batcher.alive

    @property
    def warm(self) -> bool:
        """The warm-up has succeeded."""
        return self._batcher.warm

    @property
    def draining(self) -> bool:
        """Nothing new is admitted."""
        return self._batcher.draining

    @property
    def ready(self) -> bool:
        """Alive, warmed up and admitting; being busy does not change it."""
        return self.alive and self.warm and not self.draining

    @property
    def images(self) -> int:
        """Images admitted and not yet answered."""
        return self._batcher.images

    def start(self) -> None:
        """Start the thread that owns the device; it warms up first, readiness follows."""
        self._batcher.start()

    def drain(self) -> None:
        """Admit nothing new; what was admitted still gets its answer."""
        self._batcher.drain()

    def stop(self, timeout: float) -> bool:
        """Drain, finish, end the thread; False if it still runs after `timeout` seconds."""
        return self._batcher.stop(timeout)

    def tokenize(self, expressions: Sequence[str]) -> list[TextInput]:
        """Expressions to tokens of the model's word length; CPU work, not for the event loop."""
        encoded = self._model.tokenizer.encode(expressions, self.spec.word_length)
        return [
            TextInput(tokens, bool(truncated))
            for tokens, truncated in zip(encoded.tokens, encoded.truncated, strict=True)
        ]

    def admit(self) -> EngineSlot:
        """Reserve a place for one image; leaving the slot's `with` drops what has not run.

        Raises QueueFull, Draining or EngineStopped.
        """
        try:
            return self._batcher.admit()
        except Exception as error:
            raise self._translate(error) from error

    async def submit(
        self,
        slot: EngineSlot,
        image: ImageInput,
        texts: Sequence[TextInput],
        deadline: float | None = None,
    ) -> list[Completed[Logits]]:
        """Logits float32 (S/4, S/4) for each of `texts`, in order.

        `deadline`: a time of `clock`. Raises DeadlineExceeded, EngineStopped or InferenceFailed.
        """
        try:
            futures = slot.submit([_Pair(image, text) for text in texts], deadline)
            return list(await asyncio.gather(*map(asyncio.wrap_future, futures)))
        except Exception as error:
            raise self._translate(error) from error

    def _translate(self, error: Exception) -> ServiceError:
        """What the batcher or the backend raised, as a member of the error tree."""
        match error:
            case ServiceError():
                return error
            case BatcherFull():
                return QueueFull(error.retry_after)
            case BatcherDraining():
                return Draining()
            case BatcherStopped():
                return EngineStopped()
            case DeadlinePassed():
                return DeadlineExceeded(self._timeout)
            case _:
                return InferenceFailed()

    # -- in the worker thread ------------------------------------------------------------------

    def _warm_up(self) -> None:
        """All three stages, alone and as a full batch: no caller pays for a first pass."""
        size, length = self.spec.image_size, self.spec.word_length
        backend = self._model.backend
        for batch in {1, self._max_batch_size}:
            tokens = self._model.tokenizer.encode([f"warm-up {i}" for i in range(batch)], length)
            pyramid = backend.encode_image(np.zeros((batch, size, size, 3), dtype=np.uint8))
            logits = backend.decode(*pyramid, *backend.encode_text(tokens.tokens))
            expected = (batch, size // 4, size // 4)
            assert logits.shape == expected, f"logits {logits.shape}, expected {expected}"

    def _run(self, pairs: Sequence[_Pair]) -> list[Logits]:
        self._find_images([pair.image for pair in pairs])
        texts = self._find_texts([pair.text for pair in pairs])
        pyramids = []
        for pair in pairs:
            assert pair.image.features is not None
            pyramids.append(pair.image.features)
        p3, p4, p5 = (np.stack(level) for level in zip(*pyramids, strict=True))
        words, state, pad_mask = zip(*texts, strict=True)
        logits = self._model.backend.decode(
            p3, p4, p5, np.stack(words), np.stack(state), np.stack(pad_mask)
        )
        if not np.isfinite(logits).all():
            raise FloatingPointError("the model answered values that are not finite")
        # A copy each: a view would keep the whole batch alive for the slowest of its readers.
        return [one.copy() for one in logits.astype(np.float32, copy=False)]

    def _find_images(self, images: Sequence[ImageInput]) -> None:
        """Give every image its features: its own, the cache's, or new ones, encoded together."""
        missing: dict[bytes, list[ImageInput]] = {}
        for image in {id(image): image for image in images if image.features is None}.values():
            image.features = self._images.get(image.key)
            hit = image.features is not None or image.key in missing
            (self.metrics.cache_hits if hit else self.metrics.cache_misses).labels("image").inc()
            if image.features is None:
                missing.setdefault(image.key, []).append(image)
        if not missing:
            return
        squares = np.stack([same[0].square for same in missing.values()])
        p3, p4, p5 = self._model.backend.encode_image(squares)
        for row, (key, same) in enumerate(missing.items()):
            features = (_frozen_row(p3, row), _frozen_row(p4, row), _frozen_row(p5, row))
            self._images.put(key, features)
            for image in same:
                image.features = features

    def _find_texts(self, texts: Sequence[TextInput]) -> list[TextFeatures]:
        """The features of each text, in order; new ones are encoded together."""
        found: dict[bytes, TextFeatures] = {}
        missing: dict[bytes, TextInput] = {}
        for text in texts:
            known = found.get(text.key) or self._texts.get(text.key)
            hit = known is not None or text.key in missing
            (self.metrics.cache_hits if hit else self.metrics.cache_misses).labels("text").inc()
            if known is None:
                missing[text.key] = text
            else:
                found[text.key] = known
        if missing:
            tokens = np.stack([text.tokens for text in missing.values()])
            words, state, pad_mask = self._model.backend.encode_text(tokens)
            for row, key in enumerate(missing):
                features = (
                    _frozen_row(words, row),
                    _frozen_row(state, row),
                    _frozen_row(pad_mask, row),
                )
                self._texts.put(key, features)
                found[key] = features
        return [found[text.key] for text in texts]

    def _observe(self, report: BatchReport) -> None:
        self.metrics.batch_size.observe(report.size)
        self.metrics.inference_seconds.observe(report.seconds)
        for waited in report.waited:
            self.metrics.queue_seconds.observe(waited)


def _frozen_row(array: NDArray[Scalar], row: int) -> NDArray[Scalar]:
    """A copy of one row that nobody can mutate, and that does not keep the batch alive."""
    copy: NDArray[Scalar] = array[row].copy()
    copy.flags.writeable = False
    return copy


def _nbytes(features: tuple[NDArray[Any], ...]) -> int:
    return sum(array.nbytes for array in features)
