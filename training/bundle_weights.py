"""A network from a bundle's graphs, to go on training where its checkpoint is not at hand.

Made for the bundle 0.1.0 of `segvlm-lite`, which version 0.2.0 was trained on from.

The exporter folds batch norms into the convolutions before them and transposes linear layers.
Folding is undone with the statistics of real photos: the network answers what the graphs answer,
and its norms hold what training expects of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from model.bundle import GRAPH_FILES, Bundle
from model.config import preset_config
from model.import_report import import_tensors
from model.segvlm import SegVLM, build_segvlm

_PREFIX = "model."
_FOLDED_BIAS = ".weight_bias"
_Norm = nn.modules.batchnorm._BatchNorm


def network_of(bundle: Bundle, images: Tensor, tokens: Tensor) -> SegVLM:
    """The network that `bundle` was exported from, in evaluation mode.

    Args:
        images, tokens: real photos (N, S, S, 3) uint8 and phrases (N, L), for the statistics of
            the norms; the answers do not depend on them.

    Raises:
        ValueError: if the graphs are not laid out as this version's exporter lays them out.
    """
    config = bundle.config
    sizes = {"image_size": config.image_size, "word_length": config.word_length}
    model = build_segvlm(preset_config(config.preset, **sizes)).eval()
    tensors = dict(model.state_dict())
    norms = _norm_after(model)
    named: dict[str, Tensor] = {}
    for file in GRAPH_FILES:
        graph = onnx.load(str(bundle.file(file))).graph
        named |= _initializers(graph) | _linear_weights(graph, model, file)
    folded = {}
    for name, value in named.items():
        if name.endswith(_FOLDED_BIAS):
            folded[norms[name.removesuffix(_FOLDED_BIAS)]] = value
        elif name in tensors:
            tensors[name] = value
    for norm_name, bias in folded.items():
        norm = model.get_submodule(norm_name)
        assert isinstance(norm, _Norm)
        tensors |= {
            f"{norm_name}.weight": torch.ones_like(bias),
            f"{norm_name}.bias": bias,
            f"{norm_name}.running_mean": torch.zeros_like(bias),
            f"{norm_name}.running_var": torch.full_like(bias, 1 - norm.eps),
        }
    import_tensors(model, tensors, source=str(bundle.path))
    _give_statistics(model, list(folded), images, tokens)
    return model


def _initializers(graph: onnx.GraphProto) -> dict[str, Tensor]:
    return {
        tensor.name.removeprefix(_PREFIX): _tensor(tensor)
        for tensor in graph.initializer
        if tensor.name.startswith(_PREFIX)
    }


def _linear_weights(graph: onnx.GraphProto, model: SegVLM, file: str) -> dict[str, Tensor]:
    """Weights of linear layers, which stand transposed and nameless, in the order of their use."""
    values = {tensor.name: tensor for tensor in graph.initializer}
    products = [
        values[name]
        for node in graph.node
        if node.op_type == "MatMul"
        for name in node.input
        if name in values and not name.startswith(_PREFIX)
    ]
    rooms = ("text_encoder.",) if file == "text_encoder.onnx" else ("decoder.",)
    names = [
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and name.startswith(rooms)
    ]
    if file == "image_encoder.onnx":
        names = []
    if len(names) != len(products):
        raise ValueError(
            f"{file} multiplies by {len(products)} nameless matrices, not {len(names)}; it was "
            "exported by another version, so train from its checkpoint instead"
        )
    return {name: _tensor(value).T for name, value in zip(names, products, strict=True)}


def _tensor(value: onnx.TensorProto) -> Tensor:
    array: NDArray[np.float32] = numpy_helper.to_array(value)
    return torch.from_numpy(array.copy())


def _norm_after(model: SegVLM) -> dict[str, str]:
    """By the name of a convolution or linear layer, the batch norm that follows it."""
    found, last = {}, ""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            last = name
        elif isinstance(module, _Norm) and last:
            found[last] = name
            last = ""
    return found


def _give_statistics(model: SegVLM, norms: Iterable[str], images: Tensor, tokens: Tensor) -> None:
    """Statistics of their inputs for norms that were the identity, and the same answers."""
    modules = {name: model.get_submodule(name) for name in norms}
    seen: dict[str, list[Tensor]] = {name: [] for name in modules}

    def note(name: str, value: Tensor) -> None:
        seen[name].append(value.transpose(0, 1).flatten(1))

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: note(name, inputs[0]))
        for name, module in modules.items()
    ]
    with torch.inference_mode():
        for part in _parts(len(images)):
            model(images[part], tokens[part])
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        for name, module in modules.items():
            assert isinstance(module, _Norm) and module.running_var is not None
            assert module.running_mean is not None
            values = torch.cat(seen[name], dim=1)
            variance, mean = torch.var_mean(values, dim=1)
            module.running_mean.copy_(mean)
            module.running_var.copy_(variance)
            module.weight.copy_((variance + module.eps).sqrt())
            module.bias.add_(mean)


def _parts(count: int, size: int = 8) -> Iterator[slice]:
    return (slice(start, start + size) for start in range(0, count, size))
