"""When stages are captured and when replayed, on simulated CUDA graphs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from service.backends.base import OutOfMemory
from service.backends.torch_device import TorchDevice
from service.backends.torch_graphs import GraphedStages
from tests.service.backends.simulated_cuda import simulate_cuda_graphs


class CountingStages:
    """Stages of a line each, which count the calls that reach them by stage and rows."""

    def __init__(self) -> None:
        self.calls: dict[tuple[str, int], int] = {}
        self.full_at: int | None = None

    def _count(self, stage: str, rows: int) -> None:
        self.calls[stage, rows] = self.calls.get((stage, rows), 0) + 1
        if rows == self.full_at:
            raise RuntimeError("CUDA out of memory")

    def encode_image(self, image: Tensor) -> Sequence[Tensor]:
        self._count("image", len(image))
        return [image * 2, image + 1]

    def encode_text(self, tokens: Tensor) -> Sequence[Tensor]:
        self._count("text", len(tokens))
        return [tokens.float()]

    def decode(self, *features: Tensor) -> Tensor:
        self._count("decode", len(features[0]))
        return features[0] + features[1]

    def release_memory(self) -> None:
        pass


@pytest.fixture
def inner() -> CountingStages:
    return CountingStages()


@pytest.fixture
def graphed(inner: CountingStages, monkeypatch: pytest.MonkeyPatch) -> GraphedStages:
    simulate_cuda_graphs(monkeypatch)
    return GraphedStages(inner)


def ask(stages: GraphedStages, *values: float) -> None:
    """One batch of each stage, every answer checked."""
    rows = torch.tensor(values)[:, None]
    doubled, more = stages.encode_image(rows)
    assert torch.equal(doubled, rows * 2) and torch.equal(more, rows + 1)
    assert torch.equal(stages.encode_text(rows.long())[0], rows.long().float())
    assert torch.equal(stages.decode(rows, rows * 10), rows * 11)


def test_a_stage_and_size_is_captured_once(inner: CountingStages, graphed: GraphedStages) -> None:
    for values in ((1.0,), (2.0, 3.0), (4.0,), (5.0, 6.0), (7.0,)):
        ask(graphed, *values)
    # Three runs to warm up and the capture; replays do not come by.
    stages = ("image", "text", "decode")
    assert inner.calls == {(stage, rows): 4 for stage in stages for rows in (1, 2)}


def test_outputs_are_the_same_memory_each_time(graphed: GraphedStages) -> None:
    """That is why features are copied out."""
    first = graphed.encode_image(torch.ones(1, 1))[0]
    second = graphed.encode_image(torch.zeros(1, 1))[0]
    assert first is second and first.item() == 0


def test_released_graphs_are_captured_again(inner: CountingStages, graphed: GraphedStages) -> None:
    ask(graphed, 1.0)
    graphed.release_memory()
    assert graphed._graphs == {}
    ask(graphed, 2.0)
    assert inner.calls["image", 1] == 8


def test_no_memory_for_a_capture(inner: CountingStages, graphed: GraphedStages) -> None:
    """A smaller batch is captured as if nothing had happened."""
    device = TorchDevice(torch.device("cpu"))
    inner.full_at = 2
    with pytest.raises(OutOfMemory):
        device.run(lambda: ask(graphed, 1.0, 2.0))
    assert graphed._graphs == {}
    device.run(lambda: ask(graphed, 3.0))
    inner.full_at = None
    device.run(lambda: ask(graphed, 4.0, 5.0))
