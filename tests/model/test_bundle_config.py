"""A bundle's config.json: what is wrong in it is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.bundle import (
    CONFIG_FILE,
    GRAPH_FILES,
    TOKENIZER_FILE,
    Bundle,
    BundleConfig,
    BundleError,
    write_bundle,
)
from tests.model.bundle_parts import CONFIG, COST, edit


def test_every_truncation_of_the_configuration_is_refused(bundle: Bundle) -> None:
    text = bundle.config.to_json().rstrip()
    for length in range(len(text)):
        with pytest.raises(BundleError, match="not valid JSON"):
            BundleConfig.from_json(text[:length])


@pytest.mark.parametrize(
    "document",
    ["[]", "1", "null", '"text"', "[" * 100_000],
)
def test_other_json_is_refused(document: str) -> None:
    with pytest.raises(BundleError, match=r"not valid JSON|must hold a JSON object"):
        BundleConfig.from_json(document)


@pytest.mark.parametrize(
    ("scores", "reason"),
    [
        ('{"mIoU": 1, "mIoU": 0.2}', "names a key twice"),
        ('{"mIoU": NaN}', "NaN is not a JSON number"),
        ('{"mIoU": -Infinity}', "-Infinity is not a JSON number"),
        ('{"mIoU": 1e999}', "1e999 is too large"),
    ],
)
def test_numbers_and_keys_that_json_leaves_open_are_refused(scores: str, reason: str) -> None:
    document = replace(CONFIG, scores={}).to_json()
    assert document.count('"scores": {}') == 1
    with pytest.raises(BundleError, match=reason):
        BundleConfig.from_json(document.replace('"scores": {}', f'"scores": {scores}'))


def test_a_file_that_is_not_text_is_refused(bundle: Bundle) -> None:
    (bundle.path / CONFIG_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BundleError, match="cannot be read"):
        Bundle.load(bundle.path)


@pytest.mark.parametrize("version", [1, 3, 0, "2", None, True, 2.5])
def test_another_format_version_is_refused_before_its_fields(
    bundle: Bundle, version: object
) -> None:
    def make_future(values: dict[str, Any]) -> None:
        values["format_version"] = version
        values["a_field_of_the_future"] = 1

    edit(bundle.path, make_future)
    with pytest.raises(BundleError, match=r"format version .* install the segvlm release"):
        Bundle.load(bundle.path)


@pytest.mark.parametrize("name", sorted(json.loads(CONFIG.to_json())))
def test_a_missing_field_is_named(bundle: Bundle, name: str) -> None:
    edit(bundle.path, lambda values: values.pop(name))
    expected = "format version None" if name == "format_version" else f"lacks {name}"
    with pytest.raises(BundleError, match=expected):
        Bundle.load(bundle.path)


def test_an_unknown_field_is_named(bundle: Bundle) -> None:
    edit(bundle.path, lambda values: values.update(treshold=0.5))
    with pytest.raises(BundleError, match="unknown fields: treshold"):
        Bundle.load(bundle.path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("name", 3),
        ("name", " "),
        ("version", 1.0),
        ("preset", None),
        ("image_size", "320"),
        ("image_size", 320.0),
        ("image_size", True),
        ("image_size", 100),
        ("image_size", 0),
        ("image_size", -32),
        ("word_length", 17.5),
        ("word_length", 1),
        ("threshold", "0.35"),
        ("threshold", False),
        ("threshold", 0),
        ("threshold", 1),
        ("threshold", 10**400),
        ("mean", 0.5),
        ("mean", [0.5, 0.5]),
        ("mean", [0.5, 0.5, "0.5"]),
        ("mean", [0.5, 0.5, None]),
        ("mean", [True, False, False]),
        ("std", [0.2, 0.2, 0]),
        ("std", {"r": 1, "g": 1, "b": 1}),
        ("training", []),
        ("scores", None),
        ("scores", {"calibration": {}}),
        ("scores", {"calibration": {"knots": [[0.5, 0.5], [0.4, 0.6]]}}),
        ("parity", "1e-6"),
        ("precisions", []),
        ("precisions", {"fp8": {}}),
        ("precisions", {"fp16": 0.001}),
        ("precisions", {"fp16": {**COST, "iou_loss": "none"}}),
        ("precisions", {"fp16": {name: 0 for name in COST if name != "data"}}),
        ("files", []),
        ("files", {TOKENIZER_FILE: 5}),
        ("files", {TOKENIZER_FILE: "abc"}),
        ("files", {TOKENIZER_FILE: "G" * 64}),
    ],
)
def test_a_wrong_value_is_named(bundle: Bundle, name: str, value: object) -> None:
    edit(bundle.path, lambda values: values.update({name: value}))
    with pytest.raises(
        BundleError,
        match=rf"config\.json is not right: .*{name if name != 'files' else '(files|sha256)'}",
    ):
        Bundle.load(bundle.path)


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "/etc/passwd",
        "a/b",
        "a\\b",
        "..",
        ".",
        "",
        ".hidden",
        "a\x00b",
        "a\n",
        CONFIG_FILE,
    ],
)
def test_a_name_that_leads_elsewhere_is_refused(
    tmp_path: Path, bundle: Bundle, sources: dict[str, Path], name: str
) -> None:
    edit(bundle.path, lambda values: values["files"].update({name: "0" * 64}))
    with pytest.raises(BundleError, match="cannot name a bundle's file"):
        Bundle.load(bundle.path)
    with pytest.raises(BundleError, match="cannot name a bundle's file"):
        write_bundle(tmp_path / "new", CONFIG, {**sources, name: sources[TOKENIZER_FILE]})
    assert not (tmp_path / "new").exists()


def test_a_configuration_without_the_graphs_is_refused(bundle: Bundle) -> None:
    edit(bundle.path, lambda values: values["files"].pop(GRAPH_FILES[2]))
    with pytest.raises(BundleError, match=r"needs mask_decoder\.onnx"):
        Bundle.load(bundle.path)


def test_whole_numbers_are_taken_for_real_ones(bundle: Bundle) -> None:
    edit(bundle.path, lambda values: values.update(mean=[0, 0, 0], std=[1, 1, 1]))
    config = Bundle.load(bundle.path).config
    assert config.mean == (0.0, 0.0, 0.0)
    assert [type(value) for value in config.std] == [float] * 3
