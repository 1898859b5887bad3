"""The model as a device for the batcher: what is computed once, what is kept, what is answered.

An image's features are computed once, whatever the number of its expressions or of the batches
that they fall into, and are kept by content hash for later requests; so are an expression's.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from model.preprocess import Letterbox
from model.probe import TOLERANCES
from service.backends.base import Features, LoadedModel
from service.feature_cache import FeatureCache
from service.metrics import Metrics

logger = logging.getLogger("segvlm.inference")

Logits = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class KnownImage:
    """What is kept of an image: where it lay in the square, and its features."""

    geometry: Letterbox
    features: Features


@dataclass(eq=False, slots=True)
class ImageInput:
    """A letterboxed image, uint8 (S, S, 3), its geometry, and the hash of the file it came from.

    `features` is set by whoever made the input or, later, by the worker thread alone. It outlives
    an eviction from the cache, so a request with many expressions never encodes its image twice.
    """

    key: bytes
    square: NDArray[np.uint8]
    geometry: Letterbox
    features: Features | None = None


@dataclass(frozen=True, slots=True)
class TextInput:
    """One expression's tokens, int64 (L,), and whether the expression was cut to fit."""

    tokens: NDArray[np.int64]
    truncated: bool
    key: bytes = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.tokens.tobytes())


@dataclass(frozen=True, slots=True)
class Pair:
    """The unit of work: one image with one expression."""

    image: ImageInput
    text: TextInput


def content_key(data: bytes) -> bytes:
    """What an image file is known by: the BLAKE2b hash of its bytes, 32 bytes."""
    return hashlib.blake2b(data, digest_size=32).digest()


class ModelDevice:
    """`service.device.Device` over a loaded model and its two caches."""

    def __init__(
        self, model: LoadedModel, image_cache_bytes: int, text_cache_bytes: int, metrics: Metrics
    ) -> None:
        self._model = model
        self._backend = model.backend
        self._metrics = metrics
        self.images = FeatureCache[KnownImage](image_cache_bytes, lambda kept: kept.features.nbytes)
        self.texts = FeatureCache[Features](text_cache_bytes, lambda features: features.nbytes)

    @property
    def asynchronous(self) -> bool:
        """See `Device`."""
        return self._backend.asynchronous

    def recall(self, key: bytes) -> ImageInput | None:
        """An input for an image whose features are in the cache; its square is empty."""
        known = self.images.get(key)
        if known is None:
            return None
        self._metrics.cache_hits.labels("image").inc()
        return ImageInput(key, _NO_PIXELS, known.geometry, known.features)

    # -- in the worker thread ------------------------------------------------------------------

    def warm_up(self) -> None:
        """All three stages in every batch size: no caller pays for a first pass. Then `check`."""
        size, length = self._model.spec.image_size, self._model.spec.word_length
        for batch in self._backend.batch_sizes:
            tokens = self._model.tokenizer.encode([f"warm-up {i}" for i in range(batch)], length)
            images = np.zeros((batch, size, size, 3), dtype=np.uint8)
            logits = self._answer(images, tokens.tokens)
            expected = (batch, size // 4, size // 4)
            assert logits.shape == expected, f"logits {logits.shape}, expected {expected}"
        self.check()

    def check(self) -> None:
        """Ask the model the question that came with it. Raises RuntimeError for a wrong answer."""
        probe, spec = self._model.probe, self._model.spec
        # One pair at a time, which needs the least memory.
        answers = [
            self._answer(probe.images[i : i + 1], probe.tokens[i : i + 1])
            for i in range(len(probe.tokens))
        ]
        difference = probe.difference(np.concatenate(answers))
        tolerance = TOLERANCES[self._backend.precision]
        if difference > tolerance:
            raise RuntimeError(
                f"{spec.name} {spec.version} on {self._backend.name} "
                f"({self._backend.precision}) does not answer its bundle's own question: off by "
                f"{difference:.3g}, at most {tolerance:g} is allowed; export the bundle again, or "
                "choose another SEGVLM_BACKEND, SEGVLM_DEVICE or SEGVLM_PRECISION"
            )

    def release_memory(self) -> None:
        """Drop the cached features and what the backend keeps for speed."""
        logger.warning("the device is short of memory; the caches of features are emptied")
        self.images.clear()
        self.texts.clear()
        self._backend.release_memory()

    def launch(self, payloads: Sequence[Pair]) -> Callable[[], list[Logits]]:
        """Start a batch; each answer is logits float32 (S/4, S/4)."""
        made = _Made(self.images, self.texts)
        try:
            self._find_images([pair.image for pair in payloads], made)
            texts = self._find_texts([pair.text for pair in payloads], made)
            images = [pair.image.features for pair in payloads]
            pending = self._backend.decode(images, texts)
        except BaseException:
            made.forget()
            raise

        def results() -> list[Logits]:
            try:
                logits = pending()
                if not np.isfinite(logits).all():
                    raise FloatingPointError("the model answered values that are not finite")
            except BaseException:
                made.forget()
                raise
            # A copy each: a view would keep the whole batch alive for its slowest reader.
            return [one.copy() for one in logits]

        return results

    def _answer(self, images: NDArray[np.uint8], tokens: NDArray[np.int64]) -> Logits:
        encoded = self._backend.encode_image(images)
        return self._backend.decode(encoded, self._backend.encode_text(tokens))()

    def _find_images(self, images: Sequence[ImageInput], made: _Made) -> None:
        """Give every image its features: its own, the cache's, or new ones, encoded together."""
        missing: dict[bytes, list[ImageInput]] = {}
        for image in {id(image): image for image in images if image.features is None}.values():
            known = self.images.get(image.key)
            if known is not None:
                image.features = known.features
            self._count("image", hit=known is not None or image.key in missing)
            if known is None:
                missing.setdefault(image.key, []).append(image)
        if not missing:
            return
        squares = np.stack([same[0].square for same in missing.values()])
        encoded = self._backend.encode_image(squares)
        for (key, same), features in zip(missing.items(), encoded, strict=True):
            self.images.put(key, KnownImage(same[0].geometry, features))
            for image in same:
                image.features = features
            made.images.extend(same)

    def _find_texts(self, texts: Sequence[TextInput], made: _Made) -> list[Features]:
        """The features of each text, in order; new ones are encoded together."""
        found: dict[bytes, Features] = {}
        missing: dict[bytes, TextInput] = {}
        for text in texts:
            known = found.get(text.key) or self.texts.get(text.key)
            self._count("text", hit=known is not None or text.key in missing)
            if known is None:
                missing[text.key] = text
            else:
                found[text.key] = known
        if missing:
            encoded = self._backend.encode_text(np.stack([t.tokens for t in missing.values()]))
            for key, features in zip(missing, encoded, strict=True):
                self.texts.put(key, features)
                found[key] = features
                made.texts.append(key)
        return [found[text.key] for text in texts]

    def _count(self, cache: str, hit: bool) -> None:
        (self._metrics.cache_hits if hit else self._metrics.cache_misses).labels(cache).inc()


@dataclass(slots=True)
class _Made:
    """Features that a batch has made. If it fails they are suspect, and nobody may reuse them."""

    image_cache: FeatureCache[KnownImage]
    text_cache: FeatureCache[Features]
    images: list[ImageInput] = field(default_factory=list)
    texts: list[bytes] = field(default_factory=list)

    def forget(self) -> None:
        for image in self.images:
            image.features = None
            self.image_cache.discard(image.key)
        for key in self.texts:
            self.text_cache.discard(key)


_NO_PIXELS: NDArray[np.uint8] = np.zeros((0, 0, 3), dtype=np.uint8)
