"""Do exported graphs answer what the network answers, in every pairing that the service makes?

M = images, N = expressions, P = pairs of the two, S = input side, L = word length.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from model.segvlm import SegVLM

from .onnx_graphs import PYRAMID as PYRAMID
from .onnx_graphs import TEXT as TEXT
from .onnx_graphs import Array, OnnxGraphs

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


class Graphs(OnnxGraphs):
    """The three exported graphs of `directory`, with as many threads as torch has."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, torch.get_num_threads())

    def answer(self, request: Request) -> Outputs:
        """Every output of the three graphs by name; `logits` has P rows."""
        pyramid, text = self.encode_image(request.images), self.encode_text(request.tokens)
        image_of, text_of = list(request.image_of), list(request.text_of)
        logits = self.decode([p[image_of] for p in pyramid], [t[text_of] for t in text])
        return dict(zip((*PYRAMID, *TEXT, "logits"), (*pyramid, *text, logits), strict=True))


@torch.inference_mode()
def eager_answer(model: SegVLM, request: Request) -> Outputs:
    """What `model` itself, in evaluation mode on the CPU, answers to the same request."""
    pyramid = model.encode_image(torch.from_numpy(request.images))
    text = model.encode_text(torch.from_numpy(request.tokens))
    image_of, text_of = list(request.image_of), list(request.text_of)
    logits = model.decode(*(p[image_of] for p in pyramid), *(t[text_of] for t in text))
    values = (value.numpy() for value in (*pyramid, *text, logits))
    return dict(zip((*PYRAMID, *TEXT, "logits"), values, strict=True))


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


def compare(
    model: SegVLM, graphs: Graphs, requests: Iterable[Request], threshold: float
) -> dict[str, float]:
    """Largest relative difference of each output, and the agreement of the masks.

    Returns:
        by output name the largest |difference| / largest |eager value| of a request; `mask_iou`,
        cumulative over all pairs at `threshold` (a probability); `pairs`, how many there were.

    Raises:
        ValueError: if the network's own answer is not finite, or the shapes or padding differ.
    """
    worst: dict[str, float] = defaultdict(float)
    limit = math.log(threshold / (1 - threshold))
    intersection = union = pairs = 0
    for request in requests:
        ours, theirs = eager_answer(model, request), graphs.answer(request)
        for name, value in ours.items():
            worst[name] = max(worst[name], _difference(name, value, theirs[name]))
        mask, other = ours["logits"] >= limit, theirs["logits"] >= limit
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


def _difference(name: str, ours: Array, theirs: Array) -> float:
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        raise ValueError(
            f"{name} is {theirs.dtype} {theirs.shape} in the graph, {ours.dtype} {ours.shape} eager"
        )
    if ours.dtype == bool:
        return 0.0 if np.array_equal(ours, theirs) else math.inf
    largest = float(np.abs(ours).max())
    if not math.isfinite(largest):
        raise ValueError(f"the network's own {name} is not finite; the weights are broken")
    # An output of nothing but zeros is compared as it is.
    return float(np.abs(ours - theirs).max()) / (largest or 1.0)
