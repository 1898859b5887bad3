"""The table of word vectors in float16 within a float32 graph, where that loses nothing.

It is a third of segvlm-lite's weights, and a request reads a few of its rows.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from model.segvlm import SegVLM


def round_word_vectors(model: SegVLM) -> None:
    """Round the token embedding of `model` to what float16 holds, in place."""
    table = model.text_encoder.token_embedding.weight
    with torch.no_grad():
        table.copy_(table.half())


def halve_tables(path: Path) -> None:
    """Keep in float16 what float16 holds exactly of the tables that only `Gather` reads, in a file.

    The rows that are read become float32 again behind it, so the graph's answers are the same.
    """
    model = onnx.load(path)
    graph = model.graph
    halved = []
    for tensor in graph.initializer:
        readers = [node for node in graph.node if tensor.name in node.input]
        if tensor.data_type != onnx.TensorProto.FLOAT or not _only_gathered(tensor.name, readers):
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if np.array_equal(half.astype(np.float32), values):
            tensor.CopyFrom(numpy_helper.from_array(half, tensor.name))
            halved.append(tensor.name)
            for node in readers:
                _widen(graph, node)
    if halved:
        described = [value for value in graph.value_info if value.name not in halved]
        del graph.value_info[:]
        graph.value_info.extend(described)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, path)


def _only_gathered(name: str, readers: list[onnx.NodeProto]) -> bool:
    return bool(readers) and all(
        node.op_type == "Gather" and node.input[0] == name for node in readers
    )


def _widen(graph: onnx.GraphProto, gather: onnx.NodeProto) -> None:
    """Put a cast to float32 behind `gather`; what it gave keeps its name."""
    name = gather.output[0]
    narrow = f"{name}_half"
    cast = onnx.helper.make_node(
        "Cast", [narrow], [name], name=f"{narrow}_to_float", to=onnx.TensorProto.FLOAT
    )
    gather.output[0] = narrow
    graph.node.insert(list(graph.node).index(gather) + 1, cast)
