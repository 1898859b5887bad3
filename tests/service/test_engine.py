"""The engine: what is computed once, what is kept, and what a fault costs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest

from model.preprocess import letterbox_geometry
from service.device import OutOfMemory
from service.engine import Engine
from service.errors import DeviceMemoryShort, EngineStopped, InferenceFailed
from service.inference import ImageInput, Logits, content_key

PATIENCE = 60.0


def square(seed: int, size: int = 64) -> ImageInput:
    """A new input each time: an input remembers its own features."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    key = content_key(pixels.tobytes())
    return ImageInput(key, pixels, letterbox_geometry(size, size, size))


async def infer(engine: Engine, image: ImageInput, *expressions: str) -> list[Logits]:
    with engine.admit() as slot:
        outputs = await engine.submit(slot, image, engine.tokenize(expressions))
    return [output.result for output in outputs]


def run(service: Any, scenario: Callable[[], Awaitable[Any]]) -> Any:
    """Run `scenario` with the engine started and warmed up."""

    async def main() -> Any:
        service.engine.start()
        try:
            await asyncio.to_thread(service.wait_ready)
            async with asyncio.timeout(PATIENCE):
                return await scenario()
        finally:
            service.backend.gate.set()
            await asyncio.to_thread(service.engine.stop, PATIENCE)

    return asyncio.run(main())


def test_batched_is_single(make_service: Callable[..., Any]) -> None:
    """Requests that share a batch get what each would get alone."""
    words = ["the dog", "a red car", "sky"]

    def answers(max_batch_size: int, together: bool) -> Any:
        service = make_service(max_batch_size=max_batch_size, image_cache_bytes=0)

        async def scenario() -> Any:
            service.backend.gate.clear()
            calls = [infer(service.engine, square(seed), *words) for seed in range(3)]
            if not together:
                service.backend.gate.set()
                return [await call for call in calls]
            tasks = [asyncio.ensure_future(call) for call in calls]
            await asyncio.to_thread(service.backend.entered.wait, PATIENCE)
            service.backend.gate.set()
            return await asyncio.gather(*tasks)

        found = run(service, scenario)
        return found, service.backend.batches

    single, batches = answers(1, together=False)
    assert set(batches) == {1}
    batched, batches = answers(8, together=True)
    assert max(batches) > 3
    for one, other in zip(single, batched, strict=True):
        np.testing.assert_array_equal(np.stack(one), np.stack(other))
        assert not np.array_equal(one[0], one[1])


def test_same_image_in_one_batch_is_encoded_once(service: Any) -> None:
    async def scenario() -> None:
        service.backend.gate.clear()
        first = asyncio.ensure_future(infer(service.engine, square(1), "blocker"))
        await asyncio.to_thread(service.backend.entered.wait, PATIENCE)
        rest = [asyncio.ensure_future(infer(service.engine, square(2), "x")) for _ in range(4)]
        while service.engine.metrics.registry.get_sample_value("segvlm_queue_depth") < 4:
            await asyncio.sleep(0.002)
        service.backend.gate.set()
        await asyncio.gather(first, *rest)

    run(service, scenario)
    assert service.backend.batches == [1, 4]
    assert service.backend.images_encoded == 2
    assert service.backend.texts_encoded == 2


def test_cached_features_cannot_be_mutated(service: Any) -> None:
    image = square(3)
    run(service, lambda: infer(service.engine, image, "x"))
    assert image.features is not None
    for array in image.features.arrays:
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0


def test_image_cache_is_bounded_in_bytes(make_service: Callable[..., Any]) -> None:
    """Room for two images: the third evicts the first, which then costs an encoding again."""
    image = square(0)
    probe = make_service()
    run(probe, lambda: infer(probe.engine, image, "x"))
    assert image.features is not None
    size = image.features.nbytes
    service = make_service(image_cache_bytes=2 * size)

    async def scenario() -> list[int]:
        encoded = []
        for seed in (0, 1, 2, 2, 0):
            await infer(service.engine, square(seed), "x")
            encoded.append(service.backend.images_encoded)
        return encoded

    assert run(service, scenario) == [1, 2, 3, 3, 4]


def test_fault_of_one_image_does_not_poison_the_cache(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = service.backend.encode_image
    broken = square(7)

    def encode(images: Any) -> Any:
        if any(np.array_equal(image, broken.square) for image in images):
            raise RuntimeError("cannot encode this")
        return original(images)

    async def scenario() -> None:
        monkeypatch.setattr(service.backend, "encode_image", encode)
        with pytest.raises(InferenceFailed):
            await infer(service.engine, broken, "x")
        monkeypatch.setattr(service.backend, "encode_image", original)
        await infer(service.engine, broken, "x")

    run(service, scenario)


@pytest.mark.parametrize("fault", ["not finite", "exception"])
def test_what_a_failed_batch_made_is_not_reused(
    service: Any, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """Also features that were made before the failure: they may be why it failed."""
    original = service.backend.decode

    def decode(images: Any, texts: Any) -> Any:
        logits = original(images, texts)()
        if fault == "exception":
            raise RuntimeError("decoding failed")
        logits[0, 3, 3] = np.nan
        return lambda: logits

    async def scenario() -> None:
        monkeypatch.setattr(service.backend, "decode", decode)
        image = square(1)
        with pytest.raises(InferenceFailed):
            await infer(service.engine, image, "x")
        assert image.features is None
        assert service.engine.recall(image.key) is None
        assert service.metric("segvlm_cache_bytes", cache="image") == 0
        assert service.metric("segvlm_cache_bytes", cache="text") == 0

    run(service, scenario)


def test_broken_model_fails_its_own_question_and_stops(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every answer turns wrong while it serves: one failed request, and readiness is gone."""

    async def scenario() -> None:
        def broken(images: Any, texts: Any) -> Any:
            return lambda: np.full((len(images), 16, 16), np.nan, dtype=np.float32)

        monkeypatch.setattr(service.backend, "decode", broken)
        with pytest.raises(InferenceFailed):
            await infer(service.engine, square(1), "x")
        async with asyncio.timeout(PATIENCE):
            while service.engine.alive:
                await asyncio.sleep(0.002)
        assert not service.engine.ready
        assert "does not answer its bundle's own question" in str(service.engine.fault)
        with pytest.raises(EngineStopped):
            await infer(service.engine, square(2), "x")

    run(service, scenario)


def test_out_of_memory_empties_the_caches_and_tries_again(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, tries = service.backend.decode, []

    def decode(images: Any, texts: Any) -> Any:
        tries.append(len(images))
        if len(tries) <= 2:
            raise OutOfMemory("no room")
        return original(images, texts)

    async def scenario() -> None:
        await infer(service.engine, square(1), "x")
        assert service.metric("segvlm_cache_bytes", cache="image") > 0
        monkeypatch.setattr(service.backend, "decode", decode)
        await infer(service.engine, square(2), "x", "y")
        assert service.engine.recall(square(1).key) is None
        assert service.metric("segvlm_batch_failures_total", kind="out_of_memory") == 2

    run(service, scenario)
    assert tries == [2, 1, 1, 1]


def test_request_that_never_fits_is_a_503(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(images: Any, texts: Any) -> Any:
        raise OutOfMemory("no room")

    async def scenario() -> None:
        with monkeypatch.context() as short:
            short.setattr(service.backend, "decode", decode)
            short.setattr(service.engine._device, "check", lambda: None)
            with pytest.raises(DeviceMemoryShort):
                await infer(service.engine, square(2), "x")
        await infer(service.engine, square(2), "x")

    run(service, scenario)


def test_features_of_the_wrong_shape_stop_the_warm_up(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend that answers nonsense never becomes ready."""
    nonsense = np.zeros((1, 2, 2), dtype=np.float32)
    monkeypatch.setattr(service.backend, "decode", lambda images, texts: lambda: nonsense)
    service.engine.start()
    assert service.engine.stop(PATIENCE)
    assert not service.engine.warm
    with pytest.raises(EngineStopped):
        service.engine.admit()


def test_model_that_answers_its_own_question_wrongly_is_refused(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right shapes, finite values, and still another model than the bundle's."""
    original = service.backend.decode
    monkeypatch.setattr(
        service.backend, "decode", lambda images, texts: lambda: -original(images, texts)()
    )
    service.engine.start()
    assert service.engine.stop(PATIENCE)
    assert not service.engine.warm
    assert "SEGVLM_BACKEND" in str(service.engine.fault)


def test_images_that_are_known_need_no_pixels(service: Any) -> None:
    async def scenario() -> None:
        first = square(1)
        (answer,) = await infer(service.engine, first, "x")
        known = service.engine.recall(first.key)
        assert known is not None
        assert known.geometry == first.geometry
        assert known.square.size == 0
        (again,) = await infer(service.engine, known, "x")
        np.testing.assert_array_equal(answer, again)
        assert service.engine.recall(square(2).key) is None

    run(service, scenario)
    assert service.backend.images_encoded == 1
    assert service.metric("segvlm_cache_hits_total", cache="image") == 1
    assert service.metric("segvlm_cache_misses_total", cache="image") == 1


def test_cancelled_request_is_dropped_from_the_queue(service: Any) -> None:
    async def scenario() -> None:
        service.backend.gate.clear()
        first = asyncio.ensure_future(infer(service.engine, square(1), "blocker"))
        await asyncio.to_thread(service.backend.entered.wait, PATIENCE)
        second = asyncio.ensure_future(infer(service.engine, square(2), "x", "y"))
        while service.engine.metrics.registry.get_sample_value("segvlm_queue_depth") < 2:
            await asyncio.sleep(0.002)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert service.engine.images == 1
        service.backend.gate.set()
        await first

    run(service, scenario)
    assert service.backend.batches == [1]
    assert service.backend.images_encoded == 1


def test_deadline_in_the_queue_is_noticed(service: Any) -> None:
    async def scenario() -> None:
        texts = service.engine.tokenize(["x"])
        past = service.engine.clock() - 1.0
        with service.engine.admit() as slot, pytest.raises(TimeoutError):
            await service.engine.submit(slot, square(1), texts, past)

    run(service, scenario)
    assert service.backend.batches == []
