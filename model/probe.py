"""A question with its right answer, which a bundle carries: does what was loaded still answer so?

Hashes tell that the files are the exporter's; only an answer tells that this machine, this library
and this device compute what the exporter's network computed. numpy and Pillow only.

N = pairs, S = input side, L = word length.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

TOLERANCES = {"fp32": 0.01, "fp16": 0.1, "bf16": 0.26, "int8": 0.26}
"""Largest `Probe.difference` of a sound model, by what it computes in.

Above what was measured on the CPU: for the bundled segvlm-lite 0.009 in fp16, 0.12 in bf16 and 0.11
in int8, for earlier weights of it, whose first convolutions are what rounding harms, at most 0.037,
0.19 and 0.19; for segvlm-rn101 shrunk to five blocks, random weights, 0.013 in fp16 and 0.083 in
bf16. In float32 the order of the sums makes 1e-5. Other weights differ by more than 1; the layers
that tests/training/test_recovery.py takes away, images whose mean is not taken off and expressions
that are exchanged by more than 0.31.
"""

EXPRESSIONS = ("the red circle", "the large blue square to the left of a yellow triangle")
"""What is asked about the pictures of `draw_images`, one each."""

_FIELDS = {"images": np.uint8, "tokens": np.int64, "logits": np.float32}


@dataclass(frozen=True, slots=True)
class Probe:
    """Image i with expression i; the pictures are drawn, so nobody's photo travels in a bundle."""

    images: NDArray[np.uint8]
    """(N, S, S, 3), letterboxed."""
    tokens: NDArray[np.int64]
    """(N, L)."""
    logits: NDArray[np.float32]
    """(N, S/4, S/4), what the network in float32 answers."""

    def difference(self, answer: NDArray[np.float32]) -> float:
        """Root mean square of answer - logits, in standard deviations of the logits.

        Infinite for another shape or for values that are not finite.
        """
        if answer.shape != self.logits.shape or not np.isfinite(answer).all():
            return float("inf")
        wide = self.logits.astype(np.float64)
        return float(np.sqrt(np.mean((answer - wide) ** 2)) / max(float(wide.std()), 1e-12))

    def check(self, image_size: int, word_length: int) -> None:
        """Raise ValueError unless it is a question to a model of these sizes, with an answer."""
        pairs, cells = len(self.images), image_size // 4
        expected = {
            "images": (pairs, image_size, image_size, 3),
            "tokens": (pairs, word_length),
            "logits": (pairs, cells, cells),
        }
        for name, shape in expected.items():
            found = getattr(self, name).shape
            if pairs == 0 or found != shape:
                raise ValueError(
                    f"its {name} are {found}, but a model of side {image_size} and "
                    f"{word_length} tokens needs (N, {', '.join(map(str, shape[1:]))})"
                )
        if not np.isfinite(self.logits).all():
            raise ValueError("its logits are not finite")

    def save(self, path: Path) -> None:
        """Write the probe as an `.npz` file; equal probes make equal bytes."""
        with path.open("wb") as stream:
            np.savez_compressed(stream, **{name: getattr(self, name) for name in _FIELDS})

    @classmethod
    def load(cls, path: Path) -> Probe:
        """Read what `save` wrote. Raises ValueError for anything else."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
        except Exception as error:  # zipfile, zlib and numpy each raise their own
            raise ValueError(f"{path.name} cannot be read ({error})") from error
        found = {name: array.dtype for name, array in arrays.items()}
        if found != _FIELDS:
            raise ValueError(f"{path.name} holds {found}, expected {_FIELDS}")
        return cls(**arrays)


def draw_images(side: int) -> NDArray[np.uint8]:
    """Two pictures of coloured shapes on a gradient, one for each of `EXPRESSIONS`: (2, S, S, 3).

    Every part of a network has something to do: edges in all directions, flat and shaded areas,
    all hues, and large and small things.
    """
    return np.stack([_draw(side, turned) for turned in (False, True)])


def _draw(side: int, turned: bool) -> NDArray[np.uint8]:
    """One picture; `turned` is another arrangement on another gradient."""
    down, across = np.mgrid[:side, :side] / max(side - 1, 1)
    red, green, blue = (across, down, 1 - across) if turned else (down, 1 - across, across)
    shades = np.stack([60 + 120 * red, 80 + 100 * green, 70 + 110 * blue], axis=-1)
    picture = Image.fromarray(shades.astype(np.uint8))
    draw = ImageDraw.Draw(picture)

    def box(x: float, y: float, size: float) -> tuple[float, float, float, float]:
        """A square of `size`, whose upper left corner is (x, y); all as shares of the side."""
        x, y = (1 - x - size, y) if turned else (x, y)
        return x * side, y * side, (x + size) * side, (y + size) * side

    draw.ellipse(box(0.10, 0.12, 0.34), fill=(215, 30, 35))
    draw.rectangle(box(0.55, 0.15, 0.30), fill=(35, 60, 205))
    left, top, right, bottom = box(0.14, 0.56, 0.30)
    draw.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=(240, 215, 40))
    for number in range(8):  # a row of small dots of all hues
        hue = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(number / 8, 0.85, 0.9))
        draw.ellipse(box(0.50 + 0.058 * number, 0.62, 0.04), fill=hue)
    for number in range(6):  # bars from dark to light
        left, top, right, _ = box(0.52 + 0.075 * number, 0.74, 0.035)
        draw.rectangle((left, top, right, 0.88 * side), fill=(25 + 40 * number,) * 3)
    return np.asarray(picture)
