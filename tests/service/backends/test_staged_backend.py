"""What torch, TorchScript and ONNX Runtime on a GPU share: padding, staging, features, errors."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from service.backends.base import DeviceLost, OutOfMemory
from service.backends.torch_device import TorchDevice
from service.backends.torch_features import TensorFeatures, join_rows, pad_rows, split_rows
from service.backends.torch_stages import StagedBackend

SIDE, LENGTH = 8, 3
SIZES = (1, 2, 4, 6)


class SumStages:
    """Features are the inputs as floats; logits are their sums. Remembers what reached it."""

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, ...]] = []
        self.fault: Exception | None = None
        self.released = 0
        self.scratch: weakref.ref[Tensor] | None = None

    def _see(self, *inputs: Tensor) -> None:
        self.seen.append(tuple(value.clone() for value in inputs))
        scratch = inputs[0] + 1
        self.scratch = weakref.ref(scratch)
        if self.fault is not None:
            raise self.fault

    def encode_image(self, image: Tensor) -> Sequence[Tensor]:
        self._see(image)
        return [image.float()]

    def encode_text(self, tokens: Tensor) -> Sequence[Tensor]:
        self._see(tokens)
        return [tokens.float(), tokens == 0]

    def decode(self, *features: Tensor) -> Tensor:
        self._see(*features)
        image, tokens, _ = features
        return image.sum(dim=3) + tokens.sum(dim=1)[:, None, None]

    def release_memory(self) -> None:
        self.released += 1


class FickleDevice(TorchDevice):
    """The CPU, which can be told to answer no more."""

    lost = False

    def answers(self) -> bool:
        return not self.lost


@pytest.fixture
def stages() -> SumStages:
    return SumStages()


@pytest.fixture
def device() -> FickleDevice:
    return FickleDevice(torch.device("cpu"))


@pytest.fixture
def backend(stages: SumStages, device: FickleDevice) -> StagedBackend:
    return StagedBackend("sums", "fp32", stages, device, SIZES, padded=True)


def images(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def tokens(count: int) -> np.ndarray:
    return np.arange(count * LENGTH).reshape(count, LENGTH)


def expected(count: int) -> np.ndarray:
    return images(count).sum(axis=3) + tokens(count).sum(axis=1)[:, None, None].astype(np.float32)


@pytest.mark.parametrize(("count", "size"), [(1, 1), (2, 2), (3, 4), (4, 4), (5, 6), (6, 6)])
def test_only_promised_sizes_reach_the_stages(
    backend: StagedBackend, stages: SumStages, count: int, size: int
) -> None:
    """The last row fills up, and the answer has no row too many."""
    pyramid, text = backend.encode_image(images(count)), backend.encode_text(tokens(count))
    assert (len(pyramid), len(text)) == (count, count)
    np.testing.assert_array_equal(backend.decode(pyramid, text)(), expected(count))
    assert len(stages.seen) == 3
    for inputs in stages.seen:
        for value in inputs:
            assert len(value) == size
            for row in range(count, size):
                assert torch.equal(value[row], value[count - 1])


def test_without_padding_every_size_reaches_the_stages(
    stages: SumStages, device: TorchDevice
) -> None:
    backend = StagedBackend("sums", "fp32", stages, device, (1, 6), padded=False)
    for count in (1, 3, 5, 6):
        features = backend.encode_image(images(count)), backend.encode_text(tokens(count))
        np.testing.assert_array_equal(backend.decode(*features)(), expected(count))
    assert [len(inputs[0]) for inputs in stages.seen] == [1] * 3 + [3] * 3 + [5] * 3 + [6] * 3


def test_more_than_was_promised_is_our_mistake(backend: StagedBackend) -> None:
    with pytest.raises(AssertionError, match="batch of 7"):
        backend.encode_image(images(7))


def test_inputs_are_copied(backend: StagedBackend) -> None:
    """The caller may reuse its arrays as soon as a stage returns."""
    given = images(1)
    (features,) = backend.encode_image(given)
    given[:] = 0
    np.testing.assert_array_equal(features.tensors[0].numpy(), images(1))


Ask = Callable[[StagedBackend], object]
ASK: list[Ask] = [
    lambda backend: backend.encode_image(images(2)),
    lambda backend: backend.encode_text(tokens(2)),
    lambda backend: backend.decode(
        *([TensorFeatures([torch.ones(1, 2)])], [TensorFeatures([torch.ones(1, 2)])])
    ),
]


@pytest.mark.parametrize("ask", ASK, ids=["image", "text", "decode"])
def test_no_memory(backend: StagedBackend, stages: SumStages, ask: Ask) -> None:
    """It is told apart, and what the stage had is free before the next try."""
    stages.fault = RuntimeError("CUDA out of memory. Tried to allocate 1 GiB")
    with pytest.raises(OutOfMemory, match="1 GiB"):
        ask(backend)
    stages.fault = None
    assert stages.scratch is not None and stages.scratch() is None
    backend.release_memory()
    assert stages.released == 1
    features = backend.encode_image(images(2)), backend.encode_text(tokens(2))
    np.testing.assert_array_equal(backend.decode(*features)(), expected(2))


@pytest.mark.parametrize("ask", ASK, ids=["image", "text", "decode"])
def test_a_lost_device(
    backend: StagedBackend, stages: SumStages, device: FickleDevice, ask: Ask
) -> None:
    stages.fault = RuntimeError("CUDA error: unspecified launch failure")
    with pytest.raises(RuntimeError, match="launch failure"):
        ask(backend)
    device.lost = True
    with pytest.raises(DeviceLost, match="launch failure"):
        ask(backend)


def test_rows_that_are_joined_are_what_was_split() -> None:
    batch = [torch.arange(12.0).view(3, 4), torch.tensor([[True], [False], [True]])]
    rows = split_rows(batch, 2)
    assert [row.nbytes for row in rows] == [17, 17]
    for row in rows:
        assert all(t.untyped_storage().nbytes() == t.nbytes for t in row.tensors)
    joined = join_rows(rows, 3)
    assert torch.equal(joined[0], batch[0][[0, 1, 1]])
    assert torch.equal(joined[1], batch[1][[0, 1, 1]])


def test_layout_of_rows_survives() -> None:
    """What is channels_last stays so: convolutions would copy it back."""
    batch = torch.rand(2, 4, 3, 3).to(memory_format=torch.channels_last)
    (joined,) = join_rows(split_rows([batch], 2), 4)
    assert joined.is_contiguous(memory_format=torch.channels_last)
    assert not joined.is_contiguous()


def test_full_batches_are_not_padded() -> None:
    batch = torch.rand(2, 3)
    assert pad_rows(batch, 2) is batch
    assert torch.equal(pad_rows(batch, 4), batch[[0, 1, 1, 1]])
