"""The TorchScript stages of a bundle run on any device and hold their own weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from model.bundle import TORCHSCRIPT_FILES, Bundle
from model.segvlm import SegVLM
from tests.training.exporting.small_exports import GRAPHS, real_inputs


def constants_of(module: torch.jit.ScriptModule) -> list[tuple[Any, set[str]]]:
    """Every constant in the module's graph, blocks and calls included, with what reads it."""
    graph = module.inlined_graph  # nodes are gone with it
    blocks, found = [graph], []
    while blocks:
        for node in blocks.pop().nodes():
            blocks += node.blocks()
            if node.kind() == "prim::Constant":
                readers = {use.user.kind() for use in node.output().uses()}
                found.append((node.output().toIValue(), readers))
    return found


@pytest.mark.parametrize("name", TORCHSCRIPT_FILES)
def test_torchscript_is_bound_to_no_device(bundle: Bundle, name: str) -> None:
    """A constant device would send work to the CPU on a GPU; sizes as tensors would wait for it."""
    loaded = torch.jit.load(bundle.file(name))
    for module in (loaded, torch.jit.freeze(loaded.eval())):
        constants = constants_of(module)
        assert constants
        assert not [value for value, _ in constants if isinstance(value, torch.device)]
    # Not frozen, the weights are attributes, which move; what else is a tensor is a plain factor.
    for value, readers in constants_of(loaded):
        if isinstance(value, torch.Tensor):
            assert value.dim() == 0 and readers <= {"aten::mul", "aten::sub"}


def test_a_constant_device_would_be_seen() -> None:
    bound = torch.jit.trace(lambda x: x + torch.zeros(2, device=x.device), torch.ones(2))
    assert [value for value, _ in constants_of(bound) if isinstance(value, torch.device)]


def test_torchscript_stages_hold_their_own_weights_alone(bundle: Bundle) -> None:
    onnx_bytes, script_bytes = (
        [bundle.file(name).stat().st_size for name in names]
        for names in ([f"{name}.onnx" for name in GRAPHS], TORCHSCRIPT_FILES)
    )
    for ours, theirs in zip(script_bytes, onnx_bytes, strict=True):
        assert ours < 1.2 * theirs + 200_000


@pytest.mark.gpu
def test_torchscript_runs_where_it_is_loaded(bundle: Bundle, model: SegVLM) -> None:
    images, tokens = (torch.from_numpy(value) for value in real_inputs(model))
    image, text, mask = (
        torch.jit.load(bundle.file(name), map_location="cuda") for name in TORCHSCRIPT_FILES
    )
    with torch.no_grad():
        expected = copy.deepcopy(model).eval()(images, tokens)
        answer = mask(*image(images.cuda()), *text(tokens.cuda())).cpu()
    assert (answer - expected).abs().max() <= 1e-2 * expected.abs().max()  # TF32
