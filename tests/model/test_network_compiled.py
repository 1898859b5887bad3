"""The network traces, exports and compiles whole."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch

from model.segvlm import SegVLM
from tests.lively import lively
from tests.model.small_networks import assert_same, inputs, small

pytestmark = pytest.mark.long(30)


@torch.no_grad()
@pytest.mark.parametrize("preset", ["segvlm-lite", "segvlm-rn101"])
def test_traces_to_torchscript_of_any_batch(preset: str) -> None:
    model = lively(small(preset))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tracing a check of shapes, and of its deprecation
        traced = torch.jit.trace(model, inputs(2), check_trace=False)
    image, tokens = inputs(3)
    image = image.flip(0)
    assert_same(traced(image, tokens), model(image, tokens))


@torch.no_grad()
def test_exports_with_a_free_batch(lively_lite: SegVLM) -> None:
    """In one piece; the export's own tests export the stages of CLIP's encoders too."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(lively_lite, inputs(2), dynamic_shapes=({0: batch}, {0: batch}))
    image, tokens = inputs(3)
    image = image.flip(0)
    assert_same(program.module()(image, tokens), lively_lite(image, tokens))


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
