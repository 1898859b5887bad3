"""Batch norm over processes, and what one process alone does without a group."""

from __future__ import annotations

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from model.layers import SentenceBatchNorm, running_statistics
from training.distributed import Processes, synchronise_batch_norm


class _Alone:
    """Stands in for the default group of one process."""

    @staticmethod
    def all_reduce(values: torch.Tensor) -> None:
        """The sum over one process."""


@pytest.mark.parametrize("rows", [1, 5])
def test_the_synchronised_norm_of_one_process_is_the_norm(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.distributed.dist", _Alone)
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(3, 4), SentenceBatchNorm(4))
    synchronised = nn.Sequential(nn.Linear(3, 4), SentenceBatchNorm(4))
    synchronised.load_state_dict(plain.state_dict())
    synchronise_batch_norm(synchronised, Processes(torch.device("cpu"), rank=0, world=2))
    assert type(synchronised[1]) is not SentenceBatchNorm
    values = torch.randn(rows, 3)
    for mode in (True, False):
        plain.train(mode), synchronised.train(mode)
        assert torch.allclose(plain(values), synchronised(values), atol=1e-6)
    for name, value in plain.state_dict().items():
        assert torch.allclose(value, synchronised.state_dict()[name], atol=1e-6), name


def test_one_process_needs_no_group() -> None:
    alone = Processes(torch.device("cpu"))
    assert alone.is_main and alone.gather("x") == ["x"] and alone.share("x") == "x"
    assert alone.sum(torch.tensor([3, 4])).tolist() == [3, 4]
    alone.leave()


def test_synchronised_norms_never_leave_the_others_waiting() -> None:
    """Alone, one value a channel is normalised by running statistics; over processes it is not."""
    network = nn.Sequential(nn.BatchNorm2d(4))
    with running_statistics(network):
        assert not network[0].training
    synchronise_batch_norm(network, Processes(torch.device("cpu"), rank=0, world=2))
    for norm in (network[0], nn.SyncBatchNorm(4)):
        with running_statistics(nn.Sequential(norm)):
            assert norm.training


def test_a_norm_keeps_what_comes_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's norms hold an activation."""
    monkeypatch.setattr("training.distributed.dist", _Alone)
    torch.manual_seed(0)
    plain = nn.Sequential(BatchNormAct2d(3, act_layer=nn.ReLU6))
    with torch.no_grad():
        plain[0].weight.mul_(20)
    values = torch.randn(2, 3, 4, 4)
    expected = plain(values)
    assert expected.max() == 6
    synchronise_batch_norm(plain, Processes(torch.device("cpu"), rank=0, world=2))
    assert torch.allclose(plain(values), expected, atol=1e-5)
