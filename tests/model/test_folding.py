"""A folded network answers what it answered before, and has no batch norm that could be folded."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from model.config import preset_config
from model.deformable import DeformableConv2d
from model.folding import fold_batch_norms, fold_module
from model.image_encoder import ClipResNet
from model.segvlm import SegVLM, build_segvlm

SHALLOW_CLIP = {
    "image_encoder": "clip-rn50",
    "image_size": 64,
    "text_layers": 1,
    "decoder_layers": 1,
    "neck_widths": (64, 512, 128),
    "projector_width": 64,
    "kernel_width": 32,
}


def randomise(module: nn.Module) -> None:
    """Statistics, gains and offsets as training leaves them, not as they begin."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, _BatchNorm):
                part.running_mean.normal_(std=0.2)
                part.running_var.uniform_(0.3, 2)
                part.weight.uniform_(0.5, 1.5)
                part.bias.normal_(std=0.2)
            elif isinstance(part, DeformableConv2d):
                part.offset.bias.uniform_(-2, 2)
                part.offset.weight.normal_(std=0.01)


def network(preset: str, **overrides: Any) -> SegVLM:
    torch.manual_seed(0)
    model = build_segvlm(preset_config(preset, **overrides))
    if isinstance(model.image_encoder, ClipResNet):
        model.image_encoder = ClipResNet((1, 2, 1, 1), model.config.state_width)
    randomise(model)
    return model.eval()


def batch_norms(module: nn.Module) -> set[str]:
    return {name for name, part in module.named_modules() if isinstance(part, _BatchNorm)}


@pytest.mark.parametrize(
    ("preset", "overrides", "stay"),
    [
        ("segvlm-lite", {"image_size": 64}, {"neck.gate.0", "projector.skip.norm"}),
        ("segvlm-rn101", SHALLOW_CLIP, {"neck.gate.0"}),
        ("cris-rn50", SHALLOW_CLIP, {"neck.gate.0"}),
    ],
)
def test_a_folded_network_answers_the_same(
    preset: str, overrides: dict[str, Any], stay: set[str]
) -> None:
    model = network(preset, **overrides)
    before = copy.deepcopy(model.state_dict())
    folded = fold_batch_norms(model.train())
    assert batch_norms(folded) == stay  # those follow a product with the sentence
    assert model.training and not folded.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())

    image = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    tokens = torch.randint(1, 49000, (2, 17))
    with torch.no_grad():
        expected, answer = model.eval()(image, tokens), folded(image, tokens)
    assert (answer - expected).abs().max() <= 1e-4 * expected.abs().max()


class Toy(nn.Module):
    """A convolution, a batch norm, and what lies between or beside them."""

    def __init__(self, between: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.between = between
        randomise(self)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.between == "twice":
            y = self.conv(y)
        elif self.between == "product":
            y = y * 2
        elif self.between == "in place":
            y.relu_()
        z: Tensor = self.norm(y)
        if self.between == "read again":
            z = z + y
        elif self.between == "norm twice":
            z = self.norm(self.conv(z))
        assert y.shape == x.shape  # looking at its shape is not reading it
        return z


@pytest.mark.parametrize(
    ("between", "folds"),
    [
        ("nothing", True),
        ("product", False),
        ("in place", False),
        ("read again", False),
        ("twice", False),
        ("norm twice", False),
    ],
)
def test_only_what_stays_equal_is_folded(between: str, folds: bool) -> None:
    torch.manual_seed(0)
    toy = Toy(between).eval()
    x = torch.randn(2, 3, 5, 5)
    folded = fold_module(toy, x)
    assert (batch_norms(folded) == set()) == folds
    torch.testing.assert_close(folded(x), toy(x), rtol=1e-4, atol=1e-5)


def test_layers_of_every_kind_take_a_batch_norm() -> None:
    torch.manual_seed(0)
    grouped = nn.Conv2d(4, 6, 3, groups=2, bias=False)
    stack = nn.Sequential(
        DeformableConv2d(4, 4), nn.BatchNorm2d(4), grouped, nn.BatchNorm2d(6, affine=False)
    )
    linear = nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3))
    randomise(stack[:2])
    randomise(linear)
    stack[3].running_var.uniform_(0.5, 2)
    for module, x in ((stack, torch.randn(2, 4, 7, 7)), (linear, torch.randn(4, 5))):
        folded = fold_module(module.eval(), x)
        assert batch_norms(folded) == set()
        torch.testing.assert_close(folded(x), module(x), rtol=1e-4, atol=1e-5)
