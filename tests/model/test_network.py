"""What holds of the network whatever its weights."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.attention import MultiheadAttention, sinusoids
from model.config import CLIP_MEAN, CLIP_STD, PRESETS, SegVLMConfig, preset_config
from model.image_encoder import SpatialAttentionPool
from model.layers import Coordinates, SentenceBatchNorm
from model.projector import DynamicConvolution, EnhancementBlock
from model.segvlm import SegVLM, build_segvlm
from tests.lively import lively

SWITCHES = ("deformable", "se", "residual")


def small(preset: str, **overrides: Any) -> SegVLMConfig:
    """`preset` with everything its own but depth and, for CLIP, widths; 64 pixels."""
    if preset == "segvlm-lite":
        return preset_config(preset, image_size=64, **overrides)
    sizes: dict[str, Any] = {
        "image_encoder": "clip-rn50",
        "image_size": 64,
        "text_width": 64,
        "text_embedding_width": 64,
        "text_layers": 2,
        "state_width": 32,
        "neck_widths": (32, 64, 64),
        "decoder_layers": 2,
        "decoder_ffn": 64,
        "projector_width": 64,
        "kernel_width": 16,
    }
    return preset_config(preset, **sizes | overrides)


def on_meta(config: SegVLMConfig) -> SegVLM:
    """Shapes without numbers, which takes no time at any size."""
    with torch.device("meta"):
        return build_segvlm(config).eval()


def inputs(batch: int, size: int = 64, length: int = 17) -> tuple[Tensor, Tensor]:
    """Noise images and expressions of one word and more, so that every row has its own padding."""
    g = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8, generator=g)
    tokens = torch.zeros(batch, length, dtype=torch.int64)
    for row in range(batch):
        words = 1 + 2 * row
        ids = torch.randint(1, 49406, (words,), generator=g).tolist()
        tokens[row, : words + 2] = torch.tensor([49406, *ids, 49407])
    return image, tokens


def assert_same(answer: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    """Within `tolerance` of the largest magnitude."""
    assert answer.shape == expected.shape
    assert (answer - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.fixture(scope="module", params=["segvlm-lite", "segvlm-rn101"])
def model(request: pytest.FixtureRequest) -> SegVLM:
    return lively(small(request.param))


@pytest.fixture(scope="module")
def lite() -> SegVLM:
    return lively(small("segvlm-lite"))


# --- what it answers -----------------------------------------------------------------------------


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
def test_images_of_another_layout_are_refused(lite: SegVLM, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="letterbox_image"):
        lite.encode_image(torch.zeros(shape, dtype=torch.uint8))


@torch.no_grad()
@pytest.mark.parametrize("size", [32, 96, 160])
def test_any_multiple_of_32_works(model: SegVLM, size: int) -> None:
    image, tokens = inputs(2, size)
    logits = model(image, tokens)
    assert logits.shape == (2, size // 4, size // 4)
    assert logits.isfinite().all()


# --- training ------------------------------------------------------------------------------------


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


# --- how it is compiled --------------------------------------------------------------------------


@torch.no_grad()
def test_traces_to_torchscript_of_any_batch(model: SegVLM) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing a check of shapes, and of its deprecation
        traced = torch.jit.trace(model, inputs(2), check_trace=False)
    image, tokens = inputs(3)
    image = image.flip(0)
    assert_same(traced(image, tokens), model(image, tokens))


@torch.no_grad()
def test_exports_with_a_free_batch(lite: SegVLM) -> None:
    """In one piece; the export's own tests export the stages of CLIP's encoders too."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(lite, inputs(2), dynamic_shapes=({0: batch}, {0: batch}))
    image, tokens = inputs(3)
    image = image.flip(0)
    assert_same(program.module()(image, tokens), lite(image, tokens))


@pytest.mark.parametrize(
    ("preset", "training"),
    [
        ("segvlm-lite", True),
        ("segvlm-rn101", False),
        pytest.param("segvlm-lite", False, marks=pytest.mark.slow),
        pytest.param("segvlm-rn101", True, marks=pytest.mark.slow),
    ],
)
def test_compiles_without_a_graph_break(preset: str, training: bool) -> None:
    """`fullgraph` raises at a break; the eager backend runs what was captured as it is."""
    image, tokens = inputs(2)
    config = replace(small(preset), dropout=0.0, text_dropout=0.0)
    model = lively(config).train(training)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_same(compiled(image, tokens), model(image, tokens))


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "state"), [("cris-rn50", 1024), ("cris-rn101", 512)])
def test_shapes_at_416_are_the_official_models(preset: str, state: int) -> None:
    model = on_meta(preset_config(preset))
    seen: dict[str, tuple[int, ...]] = {}

    def record(name: str) -> Callable[..., None]:
        return lambda _, __, output: seen.update({name: tuple(output.shape[1:])})

    encoder, neck, projector = model.image_encoder, model.neck, model.projector
    watched = {
        **{f"layer{i}": getattr(encoder, f"layer{i}") for i in (1, 2, 3, 4)},
        "attention pool": encoder.attnpool,
        **{name: getattr(neck, name) for name in ("gate", "merge4", "merge3", "aggregate")},
        "coordinates": neck.coordinate_conv,
        "decoder": model.decoder,
        "visual": projector.mix,
        "kernel": projector.dynamic.kernel,
    }
    for name, module in watched.items():
        module.register_forward_hook(record(name))
    image = torch.empty(2, 416, 416, 3, dtype=torch.uint8, device="meta")
    tokens = torch.empty(2, 17, dtype=torch.int64, device="meta")
    pyramid, text = model.encode_image(image), model.encode_text(tokens)
    logits = model.decode(*pyramid, *text)
    assert [tuple(t.shape) for t in text] == [(2, 17, 512), (2, state), (2, 17)]
    assert text[2].dtype == torch.bool
    assert [tuple(p.shape[1:]) for p in pyramid] == [(256, 52, 52), (512, 26, 26), (1024, 13, 13)]
    assert seen == {
        "layer1": (256, 104, 104),
        "layer2": (512, 52, 52),
        "layer3": (1024, 26, 26),
        "layer4": (2048, 13, 13),
        "attention pool": (state, 13, 13),
        "gate": (1024, 13, 13),
        "merge4": (512, 26, 26),
        "merge3": (512, 26, 26),
        "aggregate": (512, 26, 26),
        "coordinates": (512, 26, 26),
        "decoder": (512, 26, 26),
        "visual": (256, 104, 104),
        "kernel": (2305,),
    }
    assert tuple(logits.shape) == (2, 104, 104)


def millions(module: nn.Module) -> float:
    return round(sum(p.numel() for p in module.parameters()) / 1e6, 2)


@pytest.mark.parametrize(
    ("preset", "total", "parts"),
    [
        ("cris-rn50", 146_849_122, (104.11, 24.14, 12.63, 5.97)),
        ("cris-rn101", 161_251_682, (120.74, 23.09, 12.63, 4.79)),
        # Offsets 18 * 512 * 9 + 18, SE of 32 inner channels, 1x1 residual, on top of CRIS.
        ("segvlm-rn101", 161_251_682 + 82_962 + 33_312 + 262_656, (120.74, 23.09, 12.63, 5.17)),
    ],
)
def test_parameters(preset: str, total: int, parts: tuple[float, ...]) -> None:
    model = on_meta(preset_config(preset))
    assert sum(p.numel() for p in model.parameters()) == total
    backbone = nn.ModuleList([model.image_encoder, model.text_encoder])
    found = tuple(millions(m) for m in (backbone, model.neck, model.decoder, model.projector))
    assert found == pytest.approx(parts, abs=0.011)


def test_the_lite_preset_is_small() -> None:
    assert millions(on_meta(preset_config("segvlm-lite"))) <= 12


# --- the enhancement block -----------------------------------------------------------------------


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


# --- parts against their formulas ----------------------------------------------------------------


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


def test_positions_are_kept_but_not_saved(model: SegVLM) -> None:
    buffers = dict(model.named_buffers())
    for name in ("decoder.pixel_table", "decoder.word_table", "text_encoder.causal"):
        assert name in buffers
        assert name not in model.state_dict()
