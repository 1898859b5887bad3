"""A network read back from a bundle, for bundles whose checkpoint is not at hand."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from torch import Tensor, nn

from model.bundle import WEIGHTS_FILE, Bundle
from model.checkpoint import load
from model.config import preset_config
from model.folding import foldable_pairs
from model.segvlm import SegVLM, build_segvlm

from .errors import ExportError

_PREFIX = "model."
# CLIP's temperature and the batch norms' step counters take no part in an answer.
_UNUSED = ("logit_scale", "num_batches_tracked")
_LARGEST_DIFFERENCE = 1e-3


def network_of(bundle: Bundle) -> SegVLM:
    """The network that `bundle` was exported from, in evaluation mode on the CPU.

    Its checkpoint if the bundle has one. Else the weights of its float32 graphs; batch norms that
    are folded there come back as ones that only add: the same answers, but not to be trained on,
    because the statistics are gone.

    Raises:
        ExportError: if the graphs do not tell all weights, or the network's answer to the bundle's
            probe is another.
    """
    if bundle.has(WEIGHTS_FILE):
        return load(bundle.file(WEIGHTS_FILE))
    config = bundle.config
    graphs = [onnx.load(path).graph for path in bundle.graphs()]
    try:
        model = build_segvlm(
            preset_config(
                config.preset,
                image_size=config.image_size,
                word_length=config.word_length,
                mean=config.mean,
                std=config.std,
                selection=_has(graphs, "selection"),
                optimal_threshold=_has(graphs, "optimal_threshold"),
            )
        ).eval()
        _restore(model, graphs)
        probe = bundle.probe()
        with torch.inference_mode():
            answer = model(torch.from_numpy(probe.images), torch.from_numpy(probe.tokens))
        difference = probe.difference(answer.numpy())
        if difference > _LARGEST_DIFFERENCE:
            raise ValueError(f"its answer to the probe would differ by {difference:.2g}")
    except (ValueError, RuntimeError) as error:
        raise ExportError(
            f"the network of {bundle.path} cannot be read back from its graphs ({error}); export "
            "from its checkpoint"
        ) from error
    return model


def _has(graphs: list[onnx.GraphProto], part: str) -> bool:
    """Whether the network has a part that config.json does not tell: it names the preset alone."""
    names = (tensor.name for graph in graphs for tensor in graph.initializer)
    return any(name.startswith(f"{_PREFIX}{part}.") for name in names)


def _restore(model: SegVLM, graphs: list[onnx.GraphProto]) -> None:
    """Load what the graphs hold into `model`. Raises ValueError if that is not all."""
    found: dict[str, NDArray[Any]] = {}
    folded: dict[str, NDArray[np.float32]] = {}
    for graph in graphs:
        values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        found |= {
            name.removeprefix(_PREFIX): value
            for name, value in values.items()
            if name.startswith(_PREFIX)
        }
        found |= _products(graph, values)
        folded |= dict(_biases(graph, values))
    state = model.state_dict()
    norms = dict(model.named_modules())
    for layer, name in foldable_pairs(model):
        norm = norms[name]
        assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
        if f"{name}.weight" not in found and layer in folded:
            found |= _only_adding(name, norm, folded[layer])
    lacking = [n for n in state if n not in found and not n.endswith(_UNUSED)]
    if lacking:
        raise ValueError(f"{len(lacking)} weights are not in them, {lacking[0]} for one")
    model.load_state_dict({n: _tensor(found[n]) if n in found else v for n, v in state.items()})


def _products(
    graph: onnx.GraphProto, values: dict[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """Weights of linear layers, which the exporter has transposed and renamed.

    Each is told by what is added to its product, the layer's bias; the one without a bias by what
    it multiplies, the token embedding, which a cast may follow.
    """
    maker = {name: node for node in graph.node for name in node.output}
    found = {}
    with_bias = set()

    def made_by(name: str, operator: str) -> onnx.NodeProto | None:
        node = maker.get(name)
        return node if node is not None and node.op_type == operator else None

    for node in graph.node:
        if node.op_type == "Add":
            for bias, other in (node.input, reversed(node.input)):
                product = made_by(other, "MatMul")
                if product and product.input[1] in values and bias.startswith(_PREFIX):
                    name = bias.removeprefix(_PREFIX).removesuffix("bias") + "weight"
                    found[name] = values[product.input[1]].T
                    with_bias.add(product.output[0])
    for node in graph.node:
        if node.op_type != "MatMul" or node.output[0] in with_bias or node.input[1] not in values:
            continue
        widened = made_by(node.input[0], "Cast")
        if made_by(widened.input[0] if widened else node.input[0], "Gather"):
            found["text_encoder.embedding_lift.weight"] = values[node.input[1]].T
    return found


def _biases(
    graph: onnx.GraphProto, values: dict[str, NDArray[np.float32]]
) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """By layer what is added to its output; a convolution's bias, whatever it is called."""
    places = {"Conv": 2, "Gemm": 2, "DeformConv": 3}
    for node in graph.node:
        place = places.get(node.op_type, len(node.input))
        if place < len(node.input) and node.input[place] in values:
            layer = node.input[1].removeprefix(_PREFIX).removesuffix(".weight")
            yield layer, values[node.input[place]]


def _only_adding(
    name: str, norm: nn.BatchNorm1d | nn.BatchNorm2d, bias: NDArray[np.float32]
) -> dict[str, NDArray[np.float32]]:
    """The parameters of a batch norm that adds `bias` and changes nothing else."""
    ones = np.ones_like(bias)
    return {
        f"{name}.weight": ones,
        f"{name}.bias": bias,
        f"{name}.running_mean": 0 * ones,
        f"{name}.running_var": (1 - norm.eps) * ones,
    }


def _tensor(value: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.array(value))  # those of a graph are read-only
