"""One suite for every backend: shapes, types, batches of any size, and nothing mutated.

The ONNX backend runs on three tiny graphs made here, with the names and axes of real ones, and on
the bundle that the repository ships.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model.bundle import Bundle, BundleConfig, BundleError, write_bundle
from model.tokenizer import clip_tokenizer
from service.backends import BACKENDS, load_model
from service.backends.base import LoadedModel
from service.backends.fake import load_fake
from service.backends.onnx import OnnxBackend, load_onnx
from service.engine import Engine
from service.metrics import Metrics
from service.settings import Settings

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


def image_encoder(path: Path) -> Path:
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
        name: (FLOAT, ["batch", 3, SIZE // s, SIZE // s])
        for name, s in (("p3", 8), ("p4", 16), ("p5", 32))
    }
    return graph(path, nodes, {"image": (UINT8, ["batch", SIZE, SIZE, 3])}, outputs, {})


def text_encoder(path: Path) -> Path:
    """Looks up one of 16 vectors for each token; the state is their sum."""
    table = np.random.default_rng(0).normal(size=(16, WIDTH)).astype(np.float32)
    nodes = [
        helper.make_node("Mod", ["tokens", "rows"], ["row"]),
        helper.make_node("Gather", ["table", "row"], ["words"]),
        helper.make_node("ReduceSum", ["words", "axis"], ["state"], keepdims=0),
        helper.make_node("Equal", ["tokens", "zero"], ["pad_mask"]),
    ]
    outputs = {
        "words": (FLOAT, ["batch", LENGTH, WIDTH]),
        "state": (FLOAT, ["batch", WIDTH]),
        "pad_mask": (BOOL, ["batch", LENGTH]),
    }
    constants = {
        "table": table,
        "rows": np.array(16),
        "axis": np.array([1]),
        "zero": np.array(0),
    }
    return graph(path, nodes, {"tokens": (INT64, ["batch", LENGTH])}, outputs, constants)


def mask_decoder(path: Path, output: str = "logits") -> Path:
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
                    [output if name == "floats" else f"sum{index + 2}"],
                ),
            )
        ),
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
    }
    return graph(path, nodes, inputs, outputs, constants)


@pytest.fixture(scope="module")
def tiny_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    sources = tmp_path_factory.mktemp("sources")
    clip_tokenizer().save(sources / "tokenizer.json")
    return {
        "image_encoder.onnx": image_encoder(sources / "image_encoder.onnx"),
        "text_encoder.onnx": text_encoder(sources / "text_encoder.onnx"),
        "mask_decoder.onnx": mask_decoder(sources / "mask_decoder.onnx"),
        "tokenizer.json": sources / "tokenizer.json",
    }


def tiny_config(image_size: int = SIZE) -> BundleConfig:
    return BundleConfig(
        name="tiny",
        version="7",
        preset="none",
        image_size=image_size,
        word_length=LENGTH,
        threshold=0.4,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        training={},
        scores={},
        parity={},
    )


@pytest.fixture(scope="module")
def tiny_bundle(tiny_files: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "tiny"
    write_bundle(path, tiny_config(), tiny_files)
    return path


@pytest.fixture(scope="module", params=["fake", "onnx-tiny", "onnx-default"])
def model(request: pytest.FixtureRequest) -> LoadedModel:
    if request.param == "fake":
        return load_fake(image_size=SIZE, word_length=LENGTH)
    fixture = "tiny_bundle" if request.param == "onnx-tiny" else "served_bundle"
    return load_onnx(request.getfixturevalue(fixture), threads=1)


def inputs(model: LoadedModel, batch: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    side = model.spec.image_size
    images = np.random.default_rng(batch).integers(0, 256, (batch, side, side, 3), dtype=np.uint8)
    texts = ["the red dog", "a cat", "blue", "sky", "the dog of the cat"][:batch]
    return images, model.tokenizer.encode(texts, model.spec.word_length).tokens


def run(model: LoadedModel, images: NDArray[np.uint8], tokens: NDArray[np.int64]) -> Any:
    pyramid = model.backend.encode_image(images)
    return model.backend.decode(*pyramid, *model.backend.encode_text(tokens))


@pytest.mark.parametrize("batch", [1, 3, 5])
def test_shapes_and_types(model: LoadedModel, batch: int) -> None:
    images, tokens = inputs(model, batch)
    side, length = model.spec.image_size, model.spec.word_length
    p3, p4, p5 = model.backend.encode_image(images)
    for level, stride in ((p3, 8), (p4, 16), (p5, 32)):
        assert level.dtype == np.float32
        assert level.shape[0] == batch
        assert level.shape[2:] == (side // stride, side // stride)
    words, state, pad_mask = model.backend.encode_text(tokens)
    assert words.shape[:2] == pad_mask.shape == (batch, length)
    assert (state.shape[0], state.ndim) == (batch, 2)
    assert (words.dtype, state.dtype, pad_mask.dtype) == (np.float32, np.float32, np.bool_)
    np.testing.assert_array_equal(pad_mask, tokens == 0)
    logits = model.backend.decode(p3, p4, p5, words, state, pad_mask)
    assert logits.shape == (batch, side // 4, side // 4)
    assert logits.dtype == np.float32
    assert np.isfinite(logits).all()


def test_batched_is_single(model: LoadedModel) -> None:
    images, tokens = inputs(model, 3)
    together = run(model, images, tokens)
    alone = [run(model, images[i : i + 1], tokens[i : i + 1])[0] for i in range(3)]
    scale = np.abs(together).max()
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-4 * scale)


def test_image_and_text_both_matter(model: LoadedModel) -> None:
    images, tokens = inputs(model, 2)
    same_text = run(model, images, tokens[[0, 0]])
    same_image = run(model, images[[0, 0]], tokens)
    assert not np.allclose(same_text[0], same_text[1])
    assert not np.allclose(same_image[0], same_image[1])


def test_inputs_may_be_read_only_and_stay_as_they_are(model: LoadedModel) -> None:
    images, tokens = inputs(model, 2)
    features = [*model.backend.encode_image(images), *model.backend.encode_text(tokens)]
    copies = [feature.copy() for feature in features]
    for array in (images, tokens, *features):
        array.flags.writeable = False
    model.backend.encode_image(images)
    model.backend.encode_text(tokens)
    first = model.backend.decode(*features)
    second = model.backend.decode(*features)
    np.testing.assert_array_equal(first, second)
    for feature, copy in zip(features, copies, strict=True):
        np.testing.assert_array_equal(feature, copy)


def test_tokenizer_keeps_the_end_token_of_what_it_cuts(model: LoadedModel) -> None:
    length = model.spec.word_length
    encoded = model.tokenizer.encode(["dog", "dog " * 40], length)
    assert encoded.truncated.tolist() == [False, True]
    assert encoded.tokens.dtype == np.int64
    end = encoded.tokens[0][encoded.tokens[0] != 0][-1]
    assert encoded.tokens[1, -1] == end


def test_engine_warms_up_on_it(model: LoadedModel) -> None:
    engine = Engine(model, Settings(max_batch_size=2), Metrics())
    engine.start()
    assert engine.stop(60)
    assert engine.warm


# -- the ONNX backend alone --------------------------------------------------------------------


def test_onnx_computes_what_the_graphs_say(tiny_bundle: Path) -> None:
    model = load_onnx(tiny_bundle, threads=1)
    images = np.zeros((1, SIZE, SIZE, 3), dtype=np.uint8)
    images[0, :, SIZE // 2 :, 0] = 200
    tokens = np.full((1, LENGTH), 16)  # row 0 of the table, six times
    state = model.backend.encode_text(tokens)[1][0, 0]
    logits = run(model, images, tokens)[0]
    np.testing.assert_allclose(logits[:, : SIZE // 8], state, rtol=1e-5)
    np.testing.assert_allclose(logits[:, SIZE // 8 :], 200 + state, rtol=1e-5)


def test_what_the_service_needs_comes_from_the_bundle(tiny_bundle: Path) -> None:
    model = load_model("onnx", tiny_bundle, threads=1)
    assert (model.spec.name, model.spec.version) == ("tiny", "7")
    assert (model.spec.image_size, model.spec.word_length) == (SIZE, LENGTH)
    assert model.spec.threshold == 0.4
    assert model.backend.name == "onnx-cpu"


def test_graph_that_is_not_what_its_name_says(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    files = {**tiny_files, "mask_decoder.onnx": mask_decoder(tmp_path / "x.onnx", "scores")}
    bundle = write_bundle(tmp_path / "odd", tiny_config(), files)
    with pytest.raises(BundleError, match=r"mask_decoder.onnx.*scores.*export"):
        OnnxBackend(bundle, threads=1)


def test_graph_that_is_not_onnx(tiny_files: dict[str, Path], tmp_path: Path) -> None:
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    files = {**tiny_files, "image_encoder.onnx": broken}
    bundle = write_bundle(tmp_path / "broken", tiny_config(), files)
    with pytest.raises(BundleError, match=r"cannot load .*image_encoder.onnx.*export"):
        OnnxBackend(bundle, threads=1)


def test_bundle_is_verified_before_it_is_served(tiny_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no bundle directory"):
        load_onnx(tmp_path / "missing", threads=1)
    copy = tmp_path / "copy"
    files = {name: tiny_bundle / name for name in Bundle.load(tiny_bundle).config.files}
    write_bundle(copy, tiny_config(), files)
    with (copy / "mask_decoder.onnx").open("ab") as stream:
        stream.write(b"\x00")
    with pytest.raises(BundleError, match=r"mask_decoder\.onnx"):
        load_onnx(copy, threads=1)


def test_unknown_backend_names_the_known() -> None:
    with pytest.raises(ValueError, match=", ".join(BACKENDS)):
        load_model("tpu", Path(), threads=1)
