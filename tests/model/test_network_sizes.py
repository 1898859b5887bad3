"""Shapes and numbers of parameters are the official models'."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from model.config import preset_config
from tests.model.small_networks import on_meta


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
