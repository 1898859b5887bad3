"""Parts of the network against their formulas."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.attention import MultiheadAttention, sinusoids
from model.config import preset_config
from model.image_encoder import SpatialAttentionPool
from model.layers import Coordinates
from model.projector import DynamicConvolution, EnhancementBlock
from tests.lively import lively
from tests.model.small_networks import SWITCHES, assert_same, inputs, on_meta, small


@torch.no_grad()
@pytest.mark.parametrize("switches", list(itertools.product([False, True], repeat=3)))
def test_switches_are_independent(switches: tuple[bool, bool, bool]) -> None:
    on = dict(zip(SWITCHES, switches, strict=True))
    model = lively(small("segvlm-lite", **on))
    parts = {name.split(".")[2] for name in model.state_dict() if ".enhancement." in name}
    assert parts == {"spatial", "norm", *(name for name in ("se", "residual") if on[name])}
    assert ("projector.enhancement.spatial.offset.bias" in model.state_dict()) == on["deformable"]
    assert model(*inputs(2)).isfinite().all()


def test_switches_off_make_cris() -> None:
    off = on_meta(preset_config("segvlm-rn101", **dict.fromkeys(SWITCHES, False))).state_dict()
    cris = on_meta(preset_config("cris-rn101")).state_dict()
    assert {n: v.shape for n, v in off.items()} == {n: v.shape for n, v in cris.items()}
    off_config = preset_config("segvlm-rn101", **dict.fromkeys(SWITCHES, False))
    assert replace(off_config, preset="cris-rn101") == preset_config("cris-rn101")


@torch.no_grad()
@pytest.mark.parametrize("switches", list(itertools.product([False, True], repeat=3)))
def test_the_block_is_its_equations(switches: tuple[bool, bool, bool]) -> None:
    """x_fused = SE(ReLU(BN(phi(u)))) + residual(u); zero offsets, so phi is the convolution."""
    torch.manual_seed(0)
    on = dict(zip(SWITCHES, switches, strict=True))
    block = EnhancementBlock(8, small("segvlm-lite", **on)).eval()
    block.norm.running_mean.normal_()
    u = torch.randn(2, 8, 6, 5)
    x = F.relu(block.norm(F.conv2d(u, block.spatial.weight, padding=1)))
    if on["se"]:
        pooled = x.flatten(2).mean(-1)  # (B, 8)
        w1, w2 = block.se.squeeze, block.se.excite
        inner = F.relu(F.linear(pooled, w1.weight[:, :, 0, 0], w1.bias))
        x = x * torch.sigmoid(F.linear(inner, w2.weight[:, :, 0, 0], w2.bias))[:, :, None, None]
    if on["residual"]:
        x = x + F.conv2d(u, block.residual.weight, block.residual.bias)
    assert_same(block(u), x)


@torch.no_grad()
def test_dynamic_convolution_is_one_convolution_a_sample() -> None:
    torch.manual_seed(0)
    layer = DynamicConvolution(6, 5)
    x, state = torch.randn(3, 5, 7, 4), torch.randn(3, 6)
    generated = layer.kernel(state)
    kernels, biases = generated[:, :-1].view(3, 5, 3, 3), generated[:, -1]
    expected = F.conv2d(x.reshape(1, 15, 7, 4), kernels, biases, padding=1, groups=3)[0]
    assert_same(layer(x, state), expected)


@torch.no_grad()
def test_attention_is_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = MultiheadAttention(8, 2), nn.MultiheadAttention(8, 2, batch_first=True)
    theirs.load_state_dict(ours.state_dict())
    query, key, value = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    pad_mask = torch.tensor([[False] * 5, [False] * 2 + [True] * 3])
    expected = theirs(query, key, value, key_padding_mask=pad_mask, need_weights=False)[0]
    assert_same(ours(query, key, value, ~pad_mask[:, None, None, :]), expected)


@torch.no_grad()
def test_the_attention_pools_grid_is_its_own_at_its_own_size() -> None:
    pool = SpatialAttentionPool(7, 16, 4, 8)
    torch.testing.assert_close(pool.positions(7, 7)[0], pool.positional_embedding[1:])
    assert pool.positions(13, 5).shape == (1, 65, 16)


def test_sinusoids_are_the_formula() -> None:
    table = sinusoids(50, 8)
    position, pair = 37, 3
    angle = torch.tensor(position / 10000 ** (2 * pair / 8))
    expected = torch.stack((angle.sin(), angle.cos()))
    torch.testing.assert_close(table[position, 2 * pair : 2 * pair + 2], expected)


def test_coordinates_are_x_then_y() -> None:
    x = torch.rand(2, 5, 3, 2)
    grid = Coordinates()(x)
    assert torch.equal(grid[:, :5], x)
    assert grid[1, 5].tolist() == [[-1, 1]] * 3
    assert grid[1, 6].tolist() == [[-1, -1], [0, 0], [1, 1]]
    half = Coordinates()(x.half())
    assert half.dtype == torch.float16 and half[1, 6, 1].tolist() == [0, 0]
