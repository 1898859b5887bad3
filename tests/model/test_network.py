"""What holds of the network whatever its weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from model.config import CLIP_MEAN, CLIP_STD, PRESETS, SegVLMConfig, preset_config
from model.layers import SentenceBatchNorm
from model.segvlm import SegVLM
from tests.lively import lively
from tests.model.small_networks import assert_same, inputs, small


@pytest.fixture(scope="module", params=["segvlm-lite", "segvlm-rn101"])
def model(request: pytest.FixtureRequest) -> SegVLM:
    return lively(small(request.param))


@torch.no_grad()
def test_a_batch_is_its_singles(model: SegVLM) -> None:
    image, tokens = inputs(3)
    together = model(image, tokens)
    assert together.shape == (3, 16, 16)
    alone = torch.cat([model(image[i : i + 1], tokens[i : i + 1]) for i in range(3)])
    assert_same(together, alone)
    assert (together[0] - together[1]).abs().max() > 1e-3 * together.abs().max()


@torch.no_grad()
def test_padding_of_the_text_changes_nothing(model: SegVLM) -> None:
    image, tokens = inputs(3, length=7)
    expected = model(image, tokens)
    for length in (8, 17, 77):
        assert_same(model(image, F.pad(tokens, (0, length - 7))), expected)


@torch.no_grad()
def test_the_words_matter(model: SegVLM) -> None:
    """The counterpart of the padding's test: a real token more is another answer."""
    image, tokens = inputs(2)
    other = tokens.clone()
    other[:, 1] = 1234
    expected = model(image, tokens)
    assert (model(image, other) - expected).abs().max() > 1e-3 * expected.abs().max()


@torch.no_grad()
def test_an_image_is_encoded_once_for_several_expressions(model: SegVLM) -> None:
    image, tokens = inputs(3)
    pyramid = [level.expand(3, -1, -1, -1) for level in model.encode_image(image[:1])]
    logits = model.decode(*pyramid, *model.encode_text(tokens))
    assert_same(logits, model(image[:1].expand(3, -1, -1, -1), tokens))


@torch.no_grad()
@pytest.mark.parametrize("preset", ["cris-rn50", "segvlm-lite"])
def test_normalisation_is_inside(preset: str) -> None:
    model = lively(small(preset))
    mean, std = (CLIP_MEAN, CLIP_STD) if preset == "cris-rn50" else ((0.5,) * 3, (0.5,) * 3)
    image, tokens = inputs(2)
    normalized = (image.float() / 255 - torch.tensor(mean)) / torch.tensor(std)
    expected = model.forward_normalized(normalized.permute(0, 3, 1, 2), tokens)
    assert_same(model(image, tokens), expected)


@pytest.mark.parametrize("shape", [(1, 48, 64, 3), (1, 64, 33, 3), (1, 3, 64, 64)])
def test_images_of_another_layout_are_refused(lively_lite: SegVLM, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="letterbox_image"):
        lively_lite.encode_image(torch.zeros(shape, dtype=torch.uint8))


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 96, 160])
def test_any_multiple_of_32_works(model: SegVLM, size: int) -> None:
    image, tokens = inputs(2, size)
    logits = model(image, tokens)
    assert logits.shape == (2, size // 4, size // 4)
    assert logits.isfinite().all()


@pytest.mark.parametrize("preset", sorted(PRESETS))
@pytest.mark.parametrize("batch", [1, 2])
def test_every_parameter_gets_a_gradient(preset: str, batch: int) -> None:
    check_gradients(small(preset), batch)


@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_one_image_of_the_smallest_size_trains(preset: str) -> None:
    """Its stride-32 map is a single pixel, of which there are no batch statistics."""
    model = lively(small(preset)).train()
    image = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    logits = model(image, inputs(1)[1])
    logits.square().sum().backward()
    assert logits.isfinite().all()
    norms = [part for part in model.modules() if isinstance(part, nn.BatchNorm2d)]
    assert norms
    assert all(norm.training for norm in norms), "the switch was put back"
    assert model.projector.dynamic.kernel.weight.grad.abs().max() > 0


@pytest.mark.slow
@pytest.mark.parametrize("preset", sorted(PRESETS))
def test_every_parameter_gets_a_gradient_at_full_depth(preset: str) -> None:
    check_gradients(preset_config(preset, image_size=64), batch=1)


def check_gradients(config: SegVLMConfig, batch: int) -> None:
    model = lively(config).train()
    logits = model(*inputs(batch))
    F.binary_cross_entropy_with_logits(logits, (logits > logits.median()).float()).backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert name == "text_encoder.logit_scale"
            continue
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # Softmax does not see a shift of all keys: this gradient is zero up to rounding.
        if name != "image_encoder.attnpool.k_proj.bias":
            assert parameter.grad.abs().max() > 0, name


def test_a_single_sentence_is_normalised_by_running_statistics() -> None:
    torch.manual_seed(0)
    norm, reference = SentenceBatchNorm(4), nn.BatchNorm1d(4)
    many, one = torch.randn(6, 4) + 3, torch.randn(1, 4)
    assert torch.equal(norm(many), reference(many))
    before = norm.running_mean.clone()
    answer = norm(one)
    assert torch.equal(norm.running_mean, before)
    assert torch.equal(answer, norm.eval()(one))


def test_positions_are_kept_but_not_saved(model: SegVLM) -> None:
    buffers = dict(model.named_buffers())
    for name in ("decoder.pixel_table", "decoder.word_table", "text_encoder.causal"):
        assert name in buffers
        assert name not in model.state_dict()
