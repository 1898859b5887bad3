"""Does what was exported answer what the network answers, in every pairing the service makes?

M = images, N = expressions, P = pairs of the two, S = input side, L = word length.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from .onnx_graphs import PYRAMID, TEXT, Array

Outputs = dict[str, Array]

RELATIVE_TOLERANCE = 1e-3
"""Largest difference of an output, as a share of that output's largest magnitude."""
LEAST_MASK_IOU = 0.999


@dataclass(frozen=True)
class Request:
    """Images and expressions, each encoded once, and who meets whom in the decoder.

    images (M, S, S, 3) uint8; tokens (N, L) int64; image_of, text_of: P indices.
    """

    images: Array
    tokens: Array
    image_of: Sequence[int]
    text_of: Sequence[int]


class Trial(NamedTuple):
    """A request and the network's own answer."""

    request: Request
    expected: Outputs


class Graphs(Protocol):
    """The three stages, whatever runs them: `OnnxGraphs`, `TorchGraphs`."""

    def encode_image(self, images: Array) -> list[Array]:
        """images (M, S, S, 3) uint8 -> the three levels of `PYRAMID`."""
        ...

    def encode_text(self, tokens: Array) -> list[Array]:
        """tokens (N, L) int64 -> the three parts of `TEXT`."""
        ...

    def decode(self, pyramid: Sequence[Array], text: Sequence[Array]) -> Array:
        """Levels and parts, P rows each -> logits (P, S/4, S/4) float32."""
        ...


def answer(graphs: Graphs, request: Request) -> Outputs:
    """Every output of the three graphs by name, real ones as float32; `logits` has P rows."""
    pyramid, text = graphs.encode_image(request.images), graphs.encode_text(request.tokens)
    image_of, text_of = list(request.image_of), list(request.text_of)
    logits = graphs.decode([p[image_of] for p in pyramid], [t[text_of] for t in text])
    values = (_wide(value) for value in (*pyramid, *text, logits))
    return dict(zip((*PYRAMID, *TEXT, "logits"), values, strict=True))


def _wide(value: Array) -> Array:
    return value.astype(np.float32) if value.dtype == np.float16 else value


def random_requests(image_size: int, word_length: int) -> Iterator[Request]:
    """Noise images and random words of every length, in batches of 1 and 3 and mixed."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, image_size, image_size, 3), dtype=np.uint8)
    tokens = np.zeros((3, word_length), dtype=np.int64)
    for row, words in enumerate((1, (word_length - 2) // 2, word_length - 2)):
        ids = rng.integers(1, 49406, words)
        tokens[row, : words + 2] = [49406, *ids, 49407]  # start, words, end
    return split_requests(images, tokens)


def split_requests(images: Array, tokens: Array) -> Iterator[Request]:
    """One expression an image in batches of 1, 3 and up to 8; then several expressions an image.

    images (N, S, S, 3) uint8, tokens (N, L) int64, N >= 1.
    """
    start, sizes = 0, iter((1, 3))
    while start < len(images):
        stop = min(start + next(sizes, 8), len(images))
        rows = range(stop - start)
        yield Request(images[start:stop], tokens[start:stop], rows, rows)
        start = stop
    first, texts = images[:2], tokens[:3]
    image_of = [image for image in range(len(first)) for _ in texts]
    yield Request(first, texts, image_of, list(range(len(texts))) * len(first))


def trials_of(reference: Graphs, requests: Iterable[Request]) -> list[Trial]:
    """The requests with what `reference`, the network itself, answers.

    Raises:
        ValueError: if an answer is not finite.
    """
    trials = []
    for request in requests:
        expected = answer(reference, request)
        for name, value in expected.items():
            if not np.isfinite(value).all():
                raise ValueError(f"the network's own {name} is not finite; the weights are broken")
        trials.append(Trial(request, expected))
    return trials


def compare(trials: Iterable[Trial], graphs: Graphs, threshold: float) -> dict[str, float]:
    """Largest relative difference of each output, and the agreement of the masks.

    Returns:
        by output name the largest |difference| / largest |expected| of a request; `mask_iou`,
        cumulative over all pairs at `threshold` (a probability); `pairs`, how many there were.

    Raises:
        ValueError: if shapes or types differ, or an answer is not finite.
    """
    worst: dict[str, float] = defaultdict(float)
    limit = math.log(threshold / (1 - threshold))
    intersection = union = pairs = 0
    for request, expected in trials:
        found = answer(graphs, request)
        for name, value in expected.items():
            worst[name] = max(worst[name], _difference(name, value, found[name]))
        mask, other = expected["logits"] >= limit, found["logits"] >= limit
        intersection += int((mask & other).sum())
        union += int((mask | other).sum())
        pairs += len(mask)
    return {**worst, "mask_iou": intersection / union if union else 1.0, "pairs": pairs}


def complaints(measured: dict[str, float]) -> list[str]:
    """What of `compare`'s result is out of tolerance, in words."""
    told = [
        f"{name} differs by {measured[name]:.1e} of its largest value"
        for name in (*PYRAMID, *TEXT, "logits")
        if not measured[name] <= RELATIVE_TOLERANCE
    ]
    if measured["mask_iou"] < LEAST_MASK_IOU:
        told.append(f"the masks' IoU is only {measured['mask_iou']:.4f}")
    return told


def _difference(name: str, expected: Array, found: Array) -> float:
    if expected.shape != found.shape or expected.dtype != found.dtype:
        raise ValueError(
            f"{name} is {found.dtype} {found.shape}, the network's own is {expected.dtype} "
            f"{expected.shape}"
        )
    if not np.isfinite(found).all():
        raise ValueError(f"{name} is not finite, the network's own is")
    if expected.dtype == bool:
        return 0.0 if np.array_equal(expected, found) else math.inf
    # An output of nothing but zeros is compared as it is.
    return float(np.abs(expected - found).max()) / (float(np.abs(expected).max()) or 1.0)
