"""What `LoadOptions` asks for, as several backends read it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.backends.base import LoadOptions
from service.backends.load_options import DeviceChoice, batch_sizes, device_choice


def sizes(largest: int | None, *, padded: bool) -> tuple[int, ...]:
    return batch_sizes(LoadOptions(max_batch_size=largest), 32, padded=padded)


@given(largest=st.integers(1, 300), count=st.integers(1, 300))
def test_padding_is_at_most_a_third(largest: int, count: int) -> None:
    promised = sizes(largest, padded=True)
    assert list(promised) == sorted(set(promised))
    assert promised[0] == 1
    assert promised[-1] == largest
    if count <= largest:
        size = next(size for size in promised if size >= count)
        assert 3 * (size - count) <= size


def test_sizes_are_few() -> None:
    assert sizes(None, padded=True) == (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
    assert sizes(10, padded=True) == (1, 2, 3, 4, 6, 8, 10)
    assert sizes(None, padded=False) == (1, 32)
    assert sizes(1, padded=False) == (1,)


def test_a_batch_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        sizes(0, padded=False)


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("auto", DeviceChoice("auto")),
        ("cpu", DeviceChoice("cpu")),
        ("cuda", DeviceChoice("cuda")),
        ("cuda:3", DeviceChoice("cuda", 3)),
        ("tensorrt:1", DeviceChoice("tensorrt", 1)),
    ],
)
def test_devices(text: str, choice: DeviceChoice) -> None:
    assert device_choice("onnx", text, ("cpu", "cuda", "tensorrt")) == choice


@pytest.mark.parametrize("text", ["", "CUDA", "cuda:", "cuda:-1", "cuda:1:2", "auto:1", "gpu"])
def test_devices_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="choose auto, cpu or cuda, such as cuda:1"):
        device_choice("torch", text, ("cpu", "cuda"))
