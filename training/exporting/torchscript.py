"""The three stages as TorchScript, for servers that load what `torch.jit.load` reads."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.jit._trace import TracerWarning
from torch.overrides import TorchFunctionMode

from model.folding import fold_batch_norms
from model.segvlm import SegVLM

from .stages import stages_with_inputs, without_idle_parts


def export_torchscript(model: SegVLM, directory: Path) -> None:
    """Write `{stage}.torchscript` of each stage into `directory`.

    Traced with batch norms folded; one graph takes any batch size. No device is written into it:
    `torch.jit.load(path, map_location="cuda")` runs it there.
    """
    for stage, module, inputs in stages_with_inputs(fold_batch_norms(model)):
        with warnings.catch_warnings(), torch.no_grad():
            # That sides become constants, as they shall, and that torch.export is newer.
            warnings.simplefilter("ignore", TracerWarning)
            warnings.simplefilter("ignore", FutureWarning)
            module = without_idle_parts(module, inputs)
            with _OnlyBatchVaries():
                traced = torch.jit.trace(module, inputs, check_trace=False)  # type: ignore[no-untyped-call]
            torch.jit.save(traced, str(directory / f"{stage.name}.torchscript"))


class _OnlyBatchVaries(TorchFunctionMode):
    """Inside, every axis of a tensor but the first has a plain number for its size.

    While it traces, torch follows sizes as tensors. What is computed from them then becomes part
    of the graph, with constants that `torch.jit.load` puts on the GPU: a wait for it at each.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func == _SHAPE or (func is Tensor.size and len(args) == 1 and not kwargs):
            batch, *rest = result
            return (batch, *map(int, rest))
        if func is Tensor.size and args[1:] not in ((0,), ()):
            return int(result)
        return result


_SHAPE = Tensor.shape.__get__  # type: ignore[attr-defined]
