"""The deformable convolution: torchvision's operator, and the faster way that trains on CPUs."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import deform_conv2d

from model.deformable import DeformableConv2d, deform_conv2d_by_sampling

SIDES = [(7, 5), (1, 6), (6, 1), (1, 1), (2, 2)]


def arguments(height: int, width: int, reach: float) -> tuple[Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(height * 10 + width)
    x = torch.randn(2, 4, height, width, generator=g)
    offset = reach * torch.randn(2, 18, height, width, generator=g)
    weight = torch.randn(3, 4, 3, 3, generator=g)
    return tuple(value.requires_grad_() for value in (x, offset, weight))  # type: ignore[return-value]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("height", "width"), SIDES)
def test_new_offsets_make_the_ordinary_convolution(height: int, width: int, training: bool) -> None:
    torch.manual_seed(0)
    layer = DeformableConv2d(4, 3).train(training)
    x = torch.randn(2, 4, height, width)
    expected = F.conv2d(x, layer.weight, padding=1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reach", [0.3, 3.0, 40.0], ids=["inside", "far", "outside"])
@pytest.mark.parametrize(("height", "width"), SIDES)
def test_sampling_equals_torchvision(height: int, width: int, reach: float) -> None:
    inputs = arguments(height, width, reach)
    ours = deform_conv2d_by_sampling(*inputs)
    theirs = deform_conv2d(*inputs, padding=1)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=3e-5)

    direction = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(0))
    grads = torch.autograd.grad(ours, inputs, direction)
    expected = torch.autograd.grad(theirs, inputs, direction)
    for grad, wanted in zip(grads, expected, strict=True):
        torch.testing.assert_close(grad, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("dy", "dx"), [(1, 0), (0, 2), (-2, 1)])
def test_offsets_are_down_then_across(dy: int, dx: int) -> None:
    """Whole-pixel offsets read a shifted map; what leaves the map is zero."""
    x, _, weight = arguments(6, 5, 0.0)
    offset = torch.tensor([dy, dx] * 9, dtype=torch.float32).view(1, 18, 1, 1).expand(2, -1, 6, 5)
    canvas = F.pad(x, (4, 4, 4, 4))
    shifted = canvas[:, :, 3 + dy : 11 + dy, 3 + dx : 10 + dx]  # x moved, with one pixel around it
    expected = F.conv2d(shifted, weight)
    for answer in (
        deform_conv2d_by_sampling(x, offset, weight),
        deform_conv2d(x, offset.contiguous(), weight, padding=1),
    ):
        torch.testing.assert_close(answer, expected, rtol=1e-4, atol=1e-5)


def test_training_and_evaluation_agree_on_learned_offsets() -> None:
    torch.manual_seed(0)
    layer = DeformableConv2d(4, 3)
    torch.nn.init.normal_(layer.offset.weight, std=0.5)
    torch.nn.init.uniform_(layer.offset.bias, -3, 3)
    x = torch.randn(2, 4, 9, 8)
    torch.testing.assert_close(layer.train()(x), layer.eval()(x), rtol=1e-4, atol=3e-5)


def test_offsets_learn_from_the_start() -> None:
    layer = DeformableConv2d(4, 3)
    layer(torch.randn(2, 4, 8, 8)).square().sum().backward()
    assert layer.offset.weight.grad is not None and layer.offset.weight.grad.abs().sum() > 0


def test_it_computes_in_the_type_of_its_weights() -> None:
    torch.manual_seed(0)
    layer = DeformableConv2d(4, 3).eval()
    torch.nn.init.uniform_(layer.offset.bias, -3, 3)
    x = torch.randn(2, 4, 9, 8)
    for dtype in (torch.float16, torch.bfloat16):
        answer = layer(x.to(dtype))
        assert answer.dtype == dtype
        torch.testing.assert_close(answer, layer(x.to(dtype).float()).to(dtype))


def test_what_is_not_a_number_stays_one_and_breaks_nothing() -> None:
    layer = DeformableConv2d(4, 3).eval()
    torch.nn.init.normal_(layer.offset.weight)
    x = torch.randn(1, 4, 6, 5)
    x[0, 1, 2, 2] = torch.nan
    assert layer(x).isnan().any()
    assert layer(torch.full_like(x, torch.nan)).isnan().all()
