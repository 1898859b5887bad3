"""Three ONNX graphs of a few nodes, with the names and axes of real ones, and a bundle of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model.bundle import BundleConfig
from model.probe import Probe
from model.tokenizer import clip_tokenizer

SIZE, LENGTH, WIDTH = 64, 6, 8
FLOAT, INT64, UINT8, BOOL = (
    TensorProto.FLOAT,
    TensorProto.INT64,
    TensorProto.UINT8,
    TensorProto.BOOL,
)


def graph(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: dict[str, tuple[int, list[Any]]],
    outputs: dict[str, tuple[int, list[Any]]],
    constants: dict[str, NDArray[Any]],
) -> Path:
    made = helper.make_graph(
        nodes,
        path.stem,
        [helper.make_tensor_value_info(name, *kind) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, *kind) for name, kind in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


def image_encoder(path: Path, batch: str | int = "batch") -> Path:
    """Average-pools the image; each level has the three colours."""
    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=FLOAT),
        helper.make_node("Transpose", ["float"], ["planes"], perm=[0, 3, 1, 2]),
        *(
            helper.make_node("AveragePool", ["planes"], [name], kernel_shape=[s, s], strides=[s, s])
            for name, s in (("p3", 8), ("p4", 16), ("p5", 32))
        ),
    ]
    outputs = {
        name: (FLOAT, [batch, 3, SIZE // s, SIZE // s])
        for name, s in (("p3", 8), ("p4", 16), ("p5", 32))
    }
    return graph(path, nodes, {"image": (UINT8, [batch, SIZE, SIZE, 3])}, outputs, {})


def text_encoder(path: Path, width: int = WIDTH) -> Path:
    """Looks up one of 16 vectors for each token; the state is their sum."""
    table = np.random.default_rng(0).normal(size=(16, width)).astype(np.float32)
    nodes = [
        helper.make_node("Mod", ["tokens", "rows"], ["row"]),
        helper.make_node("Gather", ["table", "row"], ["words"]),
        helper.make_node("ReduceSum", ["words", "axis"], ["state"], keepdims=0),
        helper.make_node("Equal", ["tokens", "zero"], ["pad_mask"]),
    ]
    outputs = {
        "words": (FLOAT, ["batch", LENGTH, width]),
        "state": (FLOAT, ["batch", width]),
        "pad_mask": (BOOL, ["batch", LENGTH]),
    }
    constants = {
        "table": table,
        "rows": np.array(16),
        "axis": np.array([1]),
        "zero": np.array(0),
    }
    return graph(path, nodes, {"tokens": (INT64, ["batch", LENGTH])}, outputs, constants)


def mask_decoder(path: Path, output: str = "logits", scale: float = 1.0) -> Path:
    """The red plane of p3 enlarged, plus the first element of the state; reads every input."""
    nodes = [
        helper.make_node("Gather", ["p3", "zero"], ["red"], axis=1),
        helper.make_node("Resize", ["red", "", "scales"], ["large"], mode="nearest"),
        helper.make_node("Gather", ["state", "zero"], ["bias"], axis=1),
        helper.make_node("Unsqueeze", ["bias", "axes"], ["bias3"]),
        helper.make_node("Add", ["large", "bias3"], ["sum1"]),
        *(
            node
            for index, name in enumerate(("p4", "p5", "words", "floats"))
            for node in (
                helper.make_node("ReduceMean", [name], [f"{name}_mean"], keepdims=0),
                helper.make_node("Mul", [f"{name}_mean", "nothing"], [f"{name}_nothing"]),
                helper.make_node(
                    "Add",
                    [f"sum{index + 1}", f"{name}_nothing"],
                    [f"sum{index + 2}"],
                ),
            )
        ),
        helper.make_node("Mul", ["sum5", "scale"], [output]),
    ]
    nodes.insert(0, helper.make_node("Cast", ["pad_mask"], ["floats"], to=FLOAT))
    inputs = {
        **{
            name: (FLOAT, ["batch", 3, SIZE // s, SIZE // s])
            for name, s in (("p3", 8), ("p4", 16), ("p5", 32))
        },
        "words": (FLOAT, ["batch", LENGTH, WIDTH]),
        "state": (FLOAT, ["batch", WIDTH]),
        "pad_mask": (BOOL, ["batch", LENGTH]),
    }
    outputs = {output: (FLOAT, ["batch", SIZE // 4, SIZE // 4])}
    constants = {
        "zero": np.array(0),
        "axes": np.array([1, 2]),
        "scales": np.array([1, 2, 2], dtype=np.float32),
        "nothing": np.array(0, dtype=np.float32),
        "scale": np.array(scale, dtype=np.float32),
    }
    return graph(path, nodes, inputs, outputs, constants)


def probe(image_size: int = SIZE, word_length: int = LENGTH) -> Probe:
    """A question about a black picture. The answer is not the tiny graphs'."""
    cells = image_size // 4
    return Probe(
        np.zeros((1, image_size, image_size, 3), dtype=np.uint8),
        np.full((1, word_length), 16),
        np.ones((1, cells, cells), dtype=np.float32),
    )


def config(
    image_size: int = SIZE,
    word_length: int = LENGTH,
    preset: str = "none",
    precisions: Sequence[str] = (),
) -> BundleConfig:
    cost = {"mean_iou_fp32": 0.5, "mean_iou": 0.5, "iou_loss": 0.0, "mask_iou": 1.0}
    return BundleConfig(
        name="tiny",
        version="7",
        preset=preset,
        image_size=image_size,
        word_length=word_length,
        threshold=0.4,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        training={},
        scores={},
        parity={},
        precisions={name: {**cost, "phrases": 10, "data": {}} for name in precisions},
    )


def files(directory: Path) -> dict[str, Path]:
    """What a bundle of the tiny graphs is made of, by name."""
    clip_tokenizer().save(directory / "tokenizer.json")
    probe().save(directory / "probe.npz")
    return {
        "image_encoder.onnx": image_encoder(directory / "image_encoder.onnx"),
        "text_encoder.onnx": text_encoder(directory / "text_encoder.onnx"),
        "mask_decoder.onnx": mask_decoder(directory / "mask_decoder.onnx"),
        "tokenizer.json": directory / "tokenizer.json",
        "probe.npz": directory / "probe.npz",
    }
