"""The model behind one door: caches, batcher and backend.

with engine.admit() as slot:                                  one image's place in the queue
    outputs = await engine.submit(slot, image, texts)         one output for each expression
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from service.backends.base import LoadedModel, ModelSpec
from service.batch_policy import BatchPolicy
from service.batch_queue import BatcherDraining, BatcherFull, BatcherStopped, DeadlinePassed, Slot
from service.batcher import Batcher, BatcherLimits
from service.device import OutOfMemory
from service.errors import (
    DeviceMemoryShort,
    Draining,
    EngineStopped,
    InferenceFailed,
    QueueFull,
    ServiceError,
)
from service.inference import ImageInput, Logits, ModelDevice, Pair, TextInput
from service.metrics import Metrics
from service.settings import Settings
from service.submission import Completed

EngineSlot = Slot[Pair, Logits]


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
        self._device = ModelDevice(
            model, settings.image_cache_bytes, settings.text_cache_bytes, metrics
        )
        self._batcher: Batcher[Pair, Logits] = Batcher(
            self._device,
            BatchPolicy(model.backend.batch_sizes[-1], settings.max_delay),
            BatcherLimits(settings.max_queue, settings.batch_timeout, settings.warm_up_timeout),
            observer=metrics,
            clock=clock,
        )
        metrics.watch(
            queue_depth=lambda: self._batcher.depth,
            admitted_images=lambda: self.images,
            model_ready=lambda: float(self.ready),
            cache_bytes={
                "image": lambda: self._device.images.bytes_held,
                "text": lambda: self._device.texts.bytes_held,
            },
            device_memory=model.backend.memory_bytes,
        )
        metrics.admitted_images_limit.set(settings.max_queue)
        metrics.model_info.labels(self.spec.name, self.spec.version, model.backend.name).set(1)

    @property
    def spec(self) -> ModelSpec:
        """The model's name, version and sizes."""
        return self._model.spec

    @property
    def backend_name(self) -> str:
        """What runs the model and in what, such as `onnx-cpu fp32`."""
        return f"{self._model.backend.name} {self._model.backend.precision}"

    @property
    def alive(self) -> bool:
        """The worker has not died; once False it stays so."""
        return self._batcher.alive

    @property
    def fault(self) -> str | None:
        """Why the worker died; None if it is alive or was told to stop."""
        return self._batcher.fault

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
        """Drain, finish, end the threads; False if they still run after `timeout` seconds."""
        return self._batcher.stop(timeout)

    def recall(self, key: bytes) -> ImageInput | None:
        """The image of that `content_key`, if its features are still known."""
        return self._device.recall(key)

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
            raise _translate(error) from error

    async def submit(
        self,
        slot: EngineSlot,
        image: ImageInput,
        texts: Sequence[TextInput],
        deadline: float | None = None,
    ) -> list[Completed[Logits]]:
        """Logits float32 (S/4, S/4) for each of `texts`, in order.

        `deadline`: a time of `clock`. Raises TimeoutError when it passes before the model begins,
        EngineStopped, DeviceMemoryShort or InferenceFailed.
        """
        try:
            future = slot.submit([Pair(image, text) for text in texts], deadline)
            return await asyncio.wrap_future(future)
        except Exception as error:
            raise _translate(error) from error


def _translate(error: Exception) -> ServiceError | TimeoutError:
    """What the batcher or the backend raised, as what this module promises."""
    match error:
        case BatcherFull():
            return QueueFull(error.retry_after)
        case BatcherDraining():
            return Draining()
        case BatcherStopped():
            return EngineStopped()
        case DeadlinePassed():
            return TimeoutError()
        case OutOfMemory():
            return DeviceMemoryShort()
        case _:
            return InferenceFailed()
