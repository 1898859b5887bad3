"""A backend out of three stages over tensors: staging, features, padding and errors.

torch, TorchScript and ONNX Runtime on a GPU differ only in what runs the stages.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from service.backends.base import PendingLogits, Precision
from service.backends.torch_device import TorchDevice
from service.backends.torch_features import TensorFeatures, join_rows, pad_rows, split_rows


class TensorStages(Protocol):
    """The model's stages over tensors of one device, called inside `TorchDevice.run`.

    What they give may be overwritten by the next call of the same stage, as far as the device's
    own order allows: it is copied before.
    """

    def encode_image(self, image: Tensor) -> Sequence[Tensor]:
        """uint8 (B, S, S, 3) -> p3, p4, p5."""
        ...

    def encode_text(self, tokens: Tensor) -> Sequence[Tensor]:
        """int64 (N, L) -> words, state, pad_mask."""
        ...

    def decode(self, *features: Tensor) -> Tensor:
        """p3, p4, p5, words, state, pad_mask of N rows each -> float32 logits (N, S/4, S/4)."""
        ...

    def release_memory(self) -> None:
        """Give back what only serves speed."""
        ...


class StagedBackend:
    """`service.backends.base.Backend` over `TensorStages`."""

    def __init__(
        self,
        name: str,
        precision: Precision,
        stages: TensorStages,
        device: TorchDevice,
        batch_sizes: tuple[int, ...],
        *,
        padded: bool,
    ) -> None:
        """`padded`: only batches of these sizes may reach the stages, others are filled up."""
        self.name = name
        self.precision: Precision = precision
        self.asynchronous = device.stream is not None
        self.batch_sizes = batch_sizes
        self._stages = stages
        self._device = device
        self._padded = padded

    def encode_image(self, images: NDArray[np.uint8]) -> Sequence[TensorFeatures]:
        return self._device.run(lambda: self._encode(self._stages.encode_image, images))

    def encode_text(self, tokens: NDArray[np.int64]) -> Sequence[TensorFeatures]:
        return self._device.run(lambda: self._encode(self._stages.encode_text, tokens))

    def decode(
        self, images: Sequence[TensorFeatures], texts: Sequence[TensorFeatures]
    ) -> PendingLogits:
        return self._device.run(lambda: self._decode(images, texts))

    def _encode(
        self, stage: Callable[[Tensor], Sequence[Tensor]], rows: NDArray[Any]
    ) -> Sequence[TensorFeatures]:
        batch = pad_rows(self._device.upload(rows), self._size(len(rows)))
        return split_rows(stage(batch), len(rows))

    def _decode(
        self, images: Sequence[TensorFeatures], texts: Sequence[TensorFeatures]
    ) -> PendingLogits:
        size = self._size(len(images))
        features = (*join_rows(images, size), *join_rows(texts, size))
        return self._device.download(self._stages.decode(*features)[: len(images)])

    def release_memory(self) -> None:
        self._device.run(self._stages.release_memory)
        self._device.release_memory()

    def memory_bytes(self) -> Mapping[str, int]:
        return self._device.memory_bytes()

    def _size(self, count: int) -> int:
        """The number of rows that the stages get for a batch of `count`."""
        assert 1 <= count <= self.batch_sizes[-1], f"a batch of {count}, not of {self.batch_sizes}"
        if not self._padded:
            return count
        return next(size for size in self.batch_sizes if size >= count)
