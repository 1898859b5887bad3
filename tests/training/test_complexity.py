"""Parameters and operations against counts by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from model.config import PRESETS, SegVLMConfig, preset_config
from model.segvlm import build_segvlm
from training.complexity import measure_complexity, training_step_flops

SMALL = preset_config(
    "segvlm-rn101",
    image_encoder="clip-rn50",
    image_size=64,
    text_width=64,
    text_embedding_width=48,
    text_layers=2,
    state_width=32,
    neck_widths=(40, 64, 96),
    decoder_layers=2,
    decoder_ffn=80,
    projector_width=56,
    kernel_width=16,
    se_reduction=4,
)


def linear(rows: int, inner: int, out: int) -> int:
    return 2 * rows * inner * out


def conv(side: int, inner: int, out: int, kernel: int) -> int:
    return 2 * side**2 * inner * out * kernel**2


def attention(queries: int, keys: int, width: int) -> int:
    """Scores and their weighted sum, over all heads together."""
    return 2 * 2 * queries * keys * width


def text_by_hand(config: SegVLMConfig) -> int:
    length, width = config.word_length, config.text_width
    block = linear(length, width, 4 * width) * 3 + attention(length, length, width)
    embedding = config.text_embedding_width
    lift = linear(length, embedding, width) if embedding != width else 0
    return lift + config.text_layers * block + linear(1, width, config.state_width)


def neck_by_hand(config: SegVLMConfig, channels: tuple[int, int, int]) -> int:
    side = config.image_size // 16
    (c3, c4, c5), (w3, w4, w5) = channels, config.neck_widths
    lateral = conv(2 * side, c3, w3, 3) + conv(side, c4, w4, 3) + conv(side // 2, c5, w5, 1)
    merge = linear(1, config.state_width, w5) + conv(side, w5 + w4, w4, 1)
    merge += conv(side, w3 + w4, w4, 1)
    query = conv(side, w4, w4, 3) * 2 + conv(side // 2, w5, w4, 3)
    end = conv(side, 3 * w4, w4, 1) + conv(side, w4 + 2, w4, 3) + conv(side, w4, w4, 3)
    return lateral + merge + query + end


def decoder_by_hand(config: SegVLMConfig) -> int:
    pixels, words = (config.image_size // 16) ** 2, config.word_length
    width, ffn = config.neck_widths[1], config.decoder_ffn
    own = 4 * linear(pixels, width, width) + attention(pixels, pixels, width)
    cross = 2 * linear(pixels, width, width) + 2 * linear(words, width, width)
    cross += attention(pixels, words, width)
    return config.decoder_layers * (own + cross + 2 * linear(pixels, width, ffn))


def projector_by_hand(config: SegVLMConfig) -> int:
    side = config.image_size // 16
    inner, width, kernel = config.neck_widths[1], config.projector_width, config.kernel_width
    total = conv(side, inner, width, 1) if inner != width else 0
    total += conv(2 * side, width, width, 3)  # the deformable one as an ordinary one
    if config.deformable:
        total += conv(2 * side, width, 18, 3)
    if config.se:
        total += 2 * linear(1, width, width // config.se_reduction)
    if config.residual:
        total += conv(2 * side, width, width, 1)
    total += conv(4 * side, width, kernel, 3) + conv(4 * side, kernel, kernel, 1)
    return (
        total + linear(1, config.state_width, 9 * kernel + 1) + linear(9, kernel, (4 * side) ** 2)
    )


def backbone_by_hand(config: SegVLMConfig) -> int:
    """Every convolution and linear layer by the size of what came out, and the attention pool."""
    with torch.device("meta"):
        model = build_segvlm(config).eval()
    found = []

    def add(layer: nn.Module, _: object, out: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d | nn.Linear)
        found.append(2 * out.numel() * layer.weight[0].numel())

    for layer in model.image_encoder.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(add)
    side = config.image_size
    model.image_encoder(torch.empty(1, 3, side, side, device="meta"))
    return sum(found) + attention((side // 32) ** 2, (side // 32) ** 2, 2048)


@pytest.mark.parametrize("block", [True, False])
def test_every_part_agrees_with_a_count_by_hand(block: bool) -> None:
    config = replace(SMALL, deformable=block, se=block, residual=block)
    counted = measure_complexity(config)
    assert counted.flops == {
        "image_encoder": backbone_by_hand(config),
        "text_encoder": text_by_hand(config),
        "neck": neck_by_hand(config, (512, 1024, config.state_width)),
        "decoder": decoder_by_hand(config),
        "projector": projector_by_hand(config),
    }
    assert counted.total_flops == sum(counted.flops.values())
    assert counted.text_flops == counted.flops["text_encoder"]


def test_the_papers_size_by_hand() -> None:
    """The same formulas at 416 x 416, beside the backbone."""
    config = preset_config("segvlm-rn101")
    counted = measure_complexity(config)
    assert counted.flops["text_encoder"] == text_by_hand(config)
    assert counted.flops["neck"] == neck_by_hand(config, (512, 1024, 512))
    assert counted.flops["decoder"] == decoder_by_hand(config)
    assert counted.flops["projector"] == projector_by_hand(config)


@pytest.mark.parametrize("deformable", [True, False])
def test_a_training_step_is_three_passes_but_for_the_pixels(deformable: bool) -> None:
    """Backward is two products of forward's size; the first layer needs no gradient of pixels."""
    config = replace(SMALL, deformable=deformable)
    once = measure_complexity(config)
    images, expressions = 2, 5
    forward = images * once.image_flops + expressions * (once.text_flops + once.decode_flops)
    first = images * conv(config.image_size // 2, 3, 32, 3)
    assert training_step_flops(config, images, expressions) == 3 * forward - first


def test_depthwise_convolutions_count_their_own_channels_alone() -> None:
    """torch's formula for their backward pass is too large by the number of channels."""
    config = preset_config("segvlm-lite", image_size=64)
    ratio = training_step_flops(config, 2, 2) / (2 * measure_complexity(config).total_flops)
    assert 2.9 < ratio < 3


def test_another_input_size_costs_as_a_configuration_of_that_size() -> None:
    assert training_step_flops(SMALL, 2, 2, image_size=96) == training_step_flops(
        replace(SMALL, image_size=96), 2, 2
    )
    with pytest.raises(ValueError, match="as many expressions"):
        training_step_flops(SMALL, 2, 1)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_parameters_are_the_networks(preset: str) -> None:
    with torch.device("meta"):
        model = build_segvlm(preset_config(preset))
    counted = measure_complexity(preset_config(preset))
    assert counted.total_parameters == sum(weight.numel() for weight in model.parameters())
    assert counted.to_dict()["parameters"]["total"] == counted.total_parameters
