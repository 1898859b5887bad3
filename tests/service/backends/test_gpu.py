"""What only a GPU can show of the backends, beside the contract suite; `pytest -m gpu`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from model.bundle import Bundle
from service.backends import load_model
from service.backends.base import LoadOptions, OutOfMemory
from service.backends.torch_device import TorchDevice
from service.backends.torch_graphs import GraphedStages
from tests.service.backends.conftest import LARGEST, Subject

pytestmark = pytest.mark.gpu

Ask = Callable[[int], Any]


@pytest.fixture
def device() -> TorchDevice:
    return TorchDevice(torch.device("cuda", 0))


@pytest.fixture(scope="module")
def graphed(exported_bundle: Path) -> Subject:
    """The network in bfloat16, as CUDA graphs."""
    options = LoadOptions(device="cuda", precision="bf16", compile=False, max_batch_size=LARGEST)
    return Subject(load_model("torch", exported_bundle, options), None)  # type: ignore[arg-type]


def test_auto_takes_the_gpu(exported_bundle: Path) -> None:
    model = load_model("torch", exported_bundle, LoadOptions(compile=False))
    assert (model.backend.name, model.backend.precision) == ("torch-cuda", "bf16")
    assert model.backend.batch_sizes[-1] == 32
    assert Bundle.load(exported_bundle).has("model.safetensors")


def test_a_stage_and_size_is_captured_once(graphed: Subject) -> None:
    stages = graphed.model.backend._stages
    assert isinstance(stages, GraphedStages)
    for _ in range(2):
        for size in (1, 3, 5, 7, 8):
            graphed.ask(range(size), range(size))
    stage_names = ("encode_image", "encode_text", "decode")
    assert stages._graphs.keys() >= {(name, size) for name in stage_names for size in (1, 3, 6, 8)}
    assert all(size in graphed.model.backend.batch_sizes for _, size in stages._graphs)
    captured = dict(stages._graphs)
    graphed.ask(range(5), range(5))
    assert stages._graphs == captured


def test_many_batches_in_flight(graphed: Subject) -> None:
    """No staging, static or pinned buffer is overwritten before it was read."""
    backend, rng = graphed.model.backend, np.random.default_rng(1)
    batches = [rng.permutation(LARGEST)[: 1 + turn % LARGEST] for turn in range(40)]
    expected = [graphed.ask(rows, rows) for rows in batches]
    pending = [
        backend.decode(
            backend.encode_image(graphed.images[rows]), backend.encode_text(graphed.tokens[rows])
        )
        for rows in batches
    ]
    for answer, right in zip(pending, expected, strict=True):
        np.testing.assert_array_equal(answer(), right)


def test_stages_return_before_the_device_is_done(graphed: Subject, device: TorchDevice) -> None:
    backend = graphed.model.backend
    features = backend.encode_image(graphed.images), backend.encode_text(graphed.tokens)
    backend.decode(*features)()
    stream = backend._device.stream
    with torch.cuda.stream(stream):
        torch.cuda._sleep(500_000_000)  # clock cycles, a quarter of a second
    answer = backend.decode(*features)
    assert not stream.query()
    np.testing.assert_array_equal(answer(), graphed.answers)
    assert stream.query()


def test_memory_stays_level(graphed: Subject) -> None:
    backend = graphed.model.backend
    for _ in range(3):
        graphed.ask(range(LARGEST), range(LARGEST))
    before = backend.memory_bytes()
    for turn in range(100):
        rows = range(1 + turn % LARGEST)
        graphed.ask(rows, rows)
    after = backend.memory_bytes()
    assert after["allocated"] == before["allocated"]
    assert after["reserved"] <= before["reserved"] + 64 * 2**20
    assert 0 < after["allocated"] <= after["reserved"] <= after["used"] <= after["total"]


def test_no_memory_in_earnest(device: TorchDevice) -> None:
    def too_much() -> torch.Tensor:
        return torch.empty(1 << 50, dtype=torch.uint8, device=device.device)

    with pytest.raises(OutOfMemory, match="out of memory"):
        device.run(too_much)
    assert device.answers()
    device.release_memory()
    uploaded = device.run(lambda: device.upload(np.arange(5)))
    assert uploaded.tolist() == [0, 1, 2, 3, 4]


def test_uploads_are_not_overwritten(device: TorchDevice) -> None:
    """Pinned memory goes from one upload to the next, but only once it was read."""
    arrays = [np.full(1 << 20, value, dtype=np.int64) for value in range(50)]
    uploaded = device.run(lambda: [device.upload(array) for array in arrays])
    device.settle()
    assert [int(tensor.min()) for tensor in uploaded] == list(range(50))
    assert [int(tensor.max()) for tensor in uploaded] == list(range(50))


def test_a_downloaded_answer_stays(device: TorchDevice) -> None:
    def ask(value: float) -> Any:
        return device.download(torch.full((4, 80, 80), value, device=device.device))

    answers = [device.run(lambda value=value: ask(value)) for value in (1.0, 2.0, 3.0)]
    arrays = [answer() for answer in answers]
    device.run(lambda: ask(9.0))()
    assert [float(array.mean()) for array in arrays] == [1.0, 2.0, 3.0]
