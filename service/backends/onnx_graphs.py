"""A bundle's ONNX graphs in ONNX Runtime, each checked against what it must be. No torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime as ort

from model.bundle import Bundle, BundleConfig, BundleError
from service.backends.base import Precision

Names = tuple[tuple[str, ...], tuple[str, ...]]

PYRAMID = ("p3", "p4", "p5")
TEXT = ("words", "state", "pad_mask")
NAMES: tuple[Names, Names, Names] = (
    (("image",), PYRAMID),
    (("tokens",), TEXT),
    ((*PYRAMID, *TEXT), ("logits",)),
)
"""Inputs and outputs of the image encoder, the text encoder and the mask decoder."""
ELEMENTS = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(uint8)": np.dtype(np.uint8),
    "tensor(int64)": np.dtype(np.int64),
    "tensor(bool)": np.dtype(np.bool_),
}
"""The types that our graphs have, as ONNX Runtime writes them."""


class Value(NamedTuple):
    """An input or output of a graph; `shape` is of one row, None where any width will do."""

    name: str
    element: str
    shape: tuple[int | None, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """`shape` of a value that a graph has: all of it is known."""
        return tuple(size for size in self.shape if size is not None)


class Graph(NamedTuple):
    """An inference session and its inputs and outputs in the order of its stage."""

    session: Any
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]


OpenSession = Callable[[Path, Sequence[Value]], Any]
"""Makes an `onnxruntime.InferenceSession` of a file whose inputs are these."""


def open_graphs(
    bundle: Bundle, precision: Precision, open_session: OpenSession
) -> tuple[Graph, Graph, Graph]:
    """The image encoder, text encoder and mask decoder of `bundle`.

    Raises BundleError if one is missing, cannot be loaded, is not what its name and the bundle's
    configuration say, or does not fit the others; and what `open_session` raises as ValueError.
    """
    values = _promised(bundle.config, precision)
    graphs = []
    for path, (inputs, outputs) in zip(bundle.graphs(precision), NAMES, strict=True):
        try:
            session = open_session(path, [values[name] for name in inputs])
        except ValueError:
            raise
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            raise BundleError(
                f"ONNX Runtime {ort.__version__} cannot load {path}: {error}; export the bundle "
                "again, or install the onnxruntime that constraints.txt names"
            ) from error
        graphs.append(_check(session, path, (inputs, outputs), values))
        # The decoder must read exactly what the encoders give.
        values |= {value.name: value for value in graphs[-1].outputs}
    image, text, mask = graphs
    return image, text, mask


def _promised(config: BundleConfig, precision: Precision) -> dict[str, Value]:
    """What each input and output must be. Widths are the model's own affair."""
    side, length = config.image_size, config.word_length
    real = "tensor(float16)" if precision == "fp16" else "tensor(float)"
    values = [Value("image", "tensor(uint8)", (side, side, 3))]
    for name, stride in (("p3", 8), ("p4", 16), ("p5", 32)):
        values.append(Value(name, real, (None, side // stride, side // stride)))
    values += [
        Value("tokens", "tensor(int64)", (length,)),
        Value("words", real, (length, None)),
        Value("state", real, (None,)),
        Value("pad_mask", "tensor(bool)", (length,)),
        Value("logits", "tensor(float)", (side // 4, side // 4)),
    ]
    return {value.name: value for value in values}


def _check(session: Any, path: Path, names: Names, promised: dict[str, Value]) -> Graph:
    found = []
    for kind, nodes, wanted in (
        ("reads", session.get_inputs(), names[0]),
        ("gives", session.get_outputs(), names[1]),
    ):
        by_name = {node.name: node for node in nodes}
        if by_name.keys() != set(wanted):
            raise BundleError(
                f"{path} {kind} {', '.join(by_name)}, expected {', '.join(wanted)}; export the "
                "bundle with this version of the project"
            )
        found.append(tuple(_value(by_name[name], path, promised[name]) for name in wanted))
    return Graph(session, *found)


def _value(node: Any, path: Path, promised: Value) -> Value:
    """`node` as it is, or BundleError if it is not as promised."""
    batch, *shape = node.shape or [0]
    fits = (
        node.type == promised.element
        and not isinstance(batch, int)  # a name: any batch
        and len(shape) == len(promised.shape)
        and all(
            isinstance(size, int) and wanted in (None, size)
            for size, wanted in zip(shape, promised.shape, strict=True)
        )
    )
    if not fits:
        raise BundleError(
            f"{path}: {node.name} is {node.type} {list(node.shape)}, expected {_told(promised)}; "
            "export the bundle with this version of the project"
        )
    return Value(node.name, node.type, tuple(shape))


def _told(value: Value) -> str:
    sizes = ("any" if size is None else str(size) for size in value.shape)
    return f"{value.name}, {value.element} [batch, {', '.join(sizes)}]"


def session_options(threads: int) -> Any:
    """What sessions of every execution provider share; `threads` of one operator, 0 = all cores."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1  # the graphs are chains; a second pool only competes
    options.log_severity_level = 3
    # Idle workers that spin take the cores from the threads that decode and encode images.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
