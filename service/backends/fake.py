"""A backend without weights: masks that follow simple, exact rules.

The whole service runs on it, which is how the API is tested and how a client can be written
before there is a model. An expression with a colour's name in it ("the red square") masks the
pixels of that colour. Any other expression masks the image's brighter part inside an ellipse
that depends on the words alone, so equal requests get equal answers and others do not.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from model.probe import Probe
from model.tokenizer import TokenizedTexts
from service.backends.arrays import ArrayFeatures, join_rows, split_rows
from service.backends.base import LoadedModel, LoadOptions, ModelSpec, PendingLogits, Precision
from service.backends.load_options import batch_sizes, device_choice, supported_precision

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 30),
    "green": (30, 170, 50),
    "blue": (40, 60, 210),
    "yellow": (240, 220, 40),
    "white": (255, 255, 255),
    "black": (0, 0, 0),
}
_SOT, _EOT = 1, 2
_FIRST_COLOUR = 10
_FIRST_WORD = 100
_VOCABULARY = 50_000
_STRIDE = 4
_COLOUR_RADIUS = 90.0  # in RGB units; further away a pixel is of another colour
_SHARPNESS = 8.0


class FakeTokenizer:
    """One token for each word; the names of colours have tokens of their own. 0 is padding."""

    def encode(self, texts: Sequence[str], length: int) -> TokenizedTexts:
        """N texts -> tokens int64 (N, length), truncated bool (N,); EOT is always kept."""
        tokens = np.zeros((len(texts), length), dtype=np.int64)
        truncated = np.zeros(len(texts), dtype=np.bool_)
        for row, text in enumerate(texts):
            words = [_token(word) for word in re.findall(r"\w+", text.lower())]
            truncated[row] = len(words) > length - 2
            line = [_SOT, *words[: length - 2], _EOT]
            tokens[row, : len(line)] = line
        return TokenizedTexts(tokens, truncated)


class FakeBackend:
    """`service.backends.base.Backend`; every stage is a few lines of numpy."""

    name = "fake"
    precision: Precision = "fp32"
    asynchronous = False
    batch_sizes: tuple[int, ...] = (1, 8)

    def __init__(self, batch_sizes: tuple[int, ...] = batch_sizes) -> None:
        self.batch_sizes = batch_sizes

    def encode_image(self, images: NDArray[np.uint8]) -> Sequence[ArrayFeatures]:
        """Features: colours (1, S/4, S/4, 3)."""
        return split_rows([_block_means(images.astype(np.float32), _STRIDE)])

    def encode_text(self, tokens: NDArray[np.int64]) -> Sequence[ArrayFeatures]:
        """Features: state (1, 8) and the tokens themselves (1, L)."""
        return split_rows([np.stack([_state(row) for row in tokens]), tokens.copy()])

    def decode(
        self, images: Sequence[ArrayFeatures], texts: Sequence[ArrayFeatures]
    ) -> PendingLogits:
        (colours,), (states, _) = join_rows(images), join_rows(texts)
        logits = np.stack([_logits(*pair) for pair in zip(colours, states, strict=True)])
        return lambda: logits

    def release_memory(self) -> None:
        pass

    def memory_bytes(self) -> Mapping[str, int]:
        return {}


def load_fake(
    image_size: int = 320, word_length: int = 17, options: LoadOptions | None = None
) -> LoadedModel:
    """The fake with the sizes of the default model, or others.

    Raises ValueError for a device or a precision that it does not have.
    """
    options = options or LoadOptions()
    device_choice("fake", options.device, ("cpu",))
    supported_precision("fake", options.precision, ("fp32",), "fp32")
    backend = FakeBackend(batch_sizes(options, 8, padded=False))
    spec = ModelSpec("fake", "1", image_size, word_length, threshold=0.5)
    return LoadedModel(spec, backend, FakeTokenizer(), _probe(image_size, word_length))


def _probe(image_size: int, word_length: int) -> Probe:
    """Two colours side by side, asked for by colour and by other words."""
    images = np.zeros((2, image_size, image_size, 3), dtype=np.uint8)
    images[:, :, : image_size // 2] = COLOURS["red"]
    images[:, :, image_size // 2 :] = COLOURS["blue"]
    tokens = FakeTokenizer().encode(["the red one", "the dog"], word_length).tokens
    colours = _block_means(images.astype(np.float32), _STRIDE)
    logits = [_logits(image, _state(row)) for image, row in zip(colours, tokens, strict=True)]
    return Probe(images, tokens, np.stack(logits))


def _token(word: str) -> int:
    if word in COLOURS:
        return _FIRST_COLOUR + list(COLOURS).index(word)
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    return _FIRST_WORD + int.from_bytes(digest, "big") % (_VOCABULARY - _FIRST_WORD)


def _state(tokens: NDArray[np.int64]) -> NDArray[np.float32]:
    """(L,) -> (8,): whether a colour is named, that colour, then an ellipse's x, y and radii."""
    colours = [t - _FIRST_COLOUR for t in tokens if 0 <= t - _FIRST_COLOUR < len(COLOURS)]
    named = list(COLOURS.values())[colours[0]] if colours else (0, 0, 0)
    digest = hashlib.blake2b(tokens[tokens != 0].tobytes(), digest_size=4).digest()
    x, y, rx, ry = (byte / 255 for byte in digest)
    ellipse = (0.25 + 0.5 * x, 0.25 + 0.5 * y, 0.15 + 0.25 * rx, 0.15 + 0.25 * ry)
    return np.array([bool(colours), *named, *ellipse], dtype=np.float32)


def _logits(image: NDArray[np.float32], state: NDArray[np.float32]) -> NDArray[np.float32]:
    """Colours (h, h, 3) of the square and one state (8,) -> logits (h, h)."""
    if state[0]:
        distance = np.linalg.norm(image - state[1:4], axis=-1)
        inside = 1.0 - distance / _COLOUR_RADIUS
    else:
        side = image.shape[0]
        rows, columns = (np.mgrid[:side, :side] + 0.5) / side
        x, y, rx, ry = state[4:8]
        inside = 1.0 - ((columns - x) / rx) ** 2 - ((rows - y) / ry) ** 2
        inside = inside + 0.25 * (image.mean(axis=-1) / 255 - 0.5)
    logits: NDArray[np.float32] = (_SHARPNESS * inside).astype(np.float32)
    return logits


def _block_means(images: NDArray[np.float32], block: int) -> NDArray[np.float32]:
    """(B, H, W, K) -> (B, H/block, W/block, K)."""
    batch, height, width, channels = images.shape
    blocks = images.reshape(batch, height // block, block, width // block, block, channels)
    means: NDArray[np.float32] = blocks.mean(axis=(2, 4), dtype=np.float32)
    return means
