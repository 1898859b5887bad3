"""Bundles: read only when whole, written whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import FrozenInstanceError, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model import bundle as bundle_module
from model.bundle import (
    CONFIG_FILE,
    GRAPH_FILES,
    PROBE_FILE,
    REQUIRED_FILES,
    STAGES,
    TOKENIZER_FILE,
    Bundle,
    BundleConfig,
    BundleError,
    write_bundle,
)
from model.calibration import ScoreMap
from model.probe import Probe
from model.tokenizer import clip_tokenizer

CONFIG = BundleConfig(
    name="segvlm-test",
    version="1.2.3",
    preset="segvlm-lite",
    image_size=320,
    word_length=17,
    threshold=0.35,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    training={"data": "twelve photos of cats — «chats»", "steps": 3},
    scores={"mIoU": 0.5, "kinds": {"class": 0.6}, "checked": True, "note": None},
    parity={"image_encoder.onnx": 2e-6},
)


COST = {
    "mean_iou_fp32": 0.5,
    "mean_iou": 0.498,
    "iou_loss": 0.002,
    "mask_iou": 0.99,
    "phrases": 2000,
    "data": {"maker": "instances"},
}


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    clip_tokenizer().save(path)
    return path


def make_probe(side: int = 320, length: int = 17, cells: int = 80) -> Probe:
    return Probe(
        np.zeros((1, side, side, 3), np.uint8),
        np.ones((1, length), np.int64),
        np.linspace(-1, 1, cells * cells, dtype=np.float32).reshape(1, cells, cells),
    )


@pytest.fixture(scope="module")
def probe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("probe") / "made.npz"
    make_probe().save(path)
    return path


@pytest.fixture
def sources(tmp_path: Path, tokenizer_file: Path, probe_file: Path) -> dict[str, Path]:
    """What an exporter has made: a real tokenizer and probe, and bytes in the place of graphs."""
    folder = tmp_path / "sources"
    folder.mkdir()
    made = {TOKENIZER_FILE: tokenizer_file, PROBE_FILE: probe_file}
    for name in GRAPH_FILES:
        made[name] = folder / f"any-{name}"
        made[name].write_bytes(name.encode() * 1000)
    return made


@pytest.fixture
def bundle(tmp_path: Path, sources: dict[str, Path]) -> Bundle:
    return write_bundle(tmp_path / "bundle", CONFIG, sources)


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change config.json as somebody with an editor would."""
    values = json.loads((path / CONFIG_FILE).read_text(encoding="utf-8"))
    change(values)
    (path / CONFIG_FILE).write_text(json.dumps(values), encoding="utf-8")


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# -- the way there and back ---------------------------------------------------------------------


def test_what_was_written_is_read(bundle: Bundle, sources: dict[str, Path]) -> None:
    read = Bundle.load(bundle.path)
    assert read == bundle
    assert replace(read.config, files={}) == CONFIG
    assert set(read.config.files) == set(REQUIRED_FILES)
    for name, source in sources.items():
        assert read.file(name).read_bytes() == source.read_bytes()
    assert sorted(os.listdir(bundle.path)) == sorted([CONFIG_FILE, *REQUIRED_FILES])


def test_the_same_sources_give_the_same_bytes(
    tmp_path: Path, bundle: Bundle, sources: dict[str, Path]
) -> None:
    other = write_bundle(tmp_path / "other", CONFIG, dict(reversed(sources.items())))
    assert contents(other.path) == contents(bundle.path)


def test_a_file_is_asked_for_by_name(bundle: Bundle) -> None:
    assert bundle.has(PROBE_FILE, *GRAPH_FILES)
    assert not bundle.has(PROBE_FILE, "model.safetensors")


def test_its_probe_is_read(bundle: Bundle) -> None:
    assert bundle.probe().difference(make_probe().logits) == 0


@pytest.mark.parametrize(
    ("probe", "told"),
    [
        (make_probe(side=288), r"its images are \(1, 288, 288, 3\)"),
        (make_probe(length=9), r"its tokens are \(1, 9\)"),
        (make_probe(cells=72), r"its logits are \(1, 72, 72\)"),
        (
            Probe(
                *(
                    np.zeros((0, *shape), kind)
                    for shape, kind in (
                        ((320, 320, 3), np.uint8),
                        ((17,), np.int64),
                        ((80, 80), np.float32),
                    )
                )
            ),
            r"its images are \(0, 320",
        ),
        (None, "cannot be read"),
    ],
)
def test_a_probe_of_another_model_is_refused(
    tmp_path: Path, sources: dict[str, Path], probe: Probe | None, told: str
) -> None:
    path = tmp_path / "other.npz"
    if probe is None:
        path.write_bytes(b"nothing of the kind")
    else:
        probe.save(path)
    with pytest.raises(BundleError, match=rf"probe\.npz is of no use: .*{told}.*export"):
        write_bundle(tmp_path / "bundle", CONFIG, {**sources, PROBE_FILE: path})
    assert not (tmp_path / "bundle").exists()


def variant_files(sources: dict[str, Path], *names: str) -> dict[str, Path]:
    return {**sources, **dict.fromkeys(names, sources[GRAPH_FILES[0]])}


def test_graphs_of_every_precision_are_found(tmp_path: Path, sources: dict[str, Path]) -> None:
    fp16 = [f"{stage}.fp16.onnx" for stage in STAGES]
    int8 = ["image_encoder.int8.onnx", "text_encoder.onnx", "mask_decoder.int8.onnx"]
    files = variant_files(sources, *fp16, int8[0], int8[2])
    config = replace(CONFIG, precisions={"fp16": COST, "int8": COST})
    written = write_bundle(tmp_path / "bundle", config, files)
    assert [path.name for path in written.graphs()] == list(GRAPH_FILES)
    assert [path.name for path in written.graphs("fp16")] == fp16
    assert [path.name for path in written.graphs("int8")] == int8  # the text encoder stands in
    assert all(path.is_file() for path in written.graphs("int8"))


def test_a_precision_that_it_lacks_is_told(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"no int8 graphs, only fp32; .* --int8"):
        bundle.graphs("int8")


@pytest.mark.parametrize(
    ("names", "precisions", "told"),
    [
        (["image_encoder.torchscript"], {}, r"lacks text_encoder\.torchscript, mask_decoder"),
        (["mask_decoder.fp16.onnx"], {"fp16": COST}, r"lacks image_encoder\.fp16\.onnx"),
        (["image_encoder.int8.onnx"], {}, r"int8 graphs and precisions\.int8"),
        ([], {"int8": COST}, r"int8 graphs and precisions\.int8"),
    ],
)
def test_half_a_set_of_graphs_is_refused(
    tmp_path: Path,
    sources: dict[str, Path],
    names: list[str],
    precisions: dict[str, dict[str, Any]],
    told: str,
) -> None:
    config = replace(CONFIG, precisions=precisions)
    with pytest.raises(BundleError, match=rf"{told}.*export the bundle again"):
        write_bundle(tmp_path / "bundle", config, variant_files(sources, *names))


def test_its_tokenizer_is_clips(bundle: Bundle) -> None:
    ids = bundle.tokenizer().encode(["a dog"], 5).tokens[0].tolist()
    assert ids == [49406, 320, 1929, 49407, 0]


def test_optional_files_are_found_by_name(tmp_path: Path, sources: dict[str, Path]) -> None:
    extra = tmp_path / "weights"
    extra.write_bytes(b"weights")
    written = write_bundle(tmp_path / "bundle", CONFIG, {**sources, "model.safetensors": extra})
    assert Bundle.load(written.path).file("model.safetensors").read_bytes() == b"weights"


def test_a_file_that_it_lacks_is_named(bundle: Bundle) -> None:
    with pytest.raises(BundleError, match=r"has no model\.safetensors"):
        bundle.file("model.safetensors")
    with pytest.raises(BundleError, match="has no"):
        bundle.file("../bundle/tokenizer.json")


def test_the_configuration_is_plain_json_and_frozen(bundle: Bundle) -> None:
    text = (bundle.path / CONFIG_FILE).read_text(encoding="utf-8")
    assert "«chats»" in text
    assert json.loads(text)["format_version"] == 2
    assert BundleConfig.from_json(bundle.config.to_json()) == bundle.config
    with pytest.raises(FrozenInstanceError):
        bundle.config.threshold = 0.9  # type: ignore[misc]


def test_its_score_map_is_what_evaluation_fitted(bundle: Bundle) -> None:
    assert bundle.config.score_map is None
    knots = [[0.2, 0.1], [0.9, 0.8]]
    config = replace(bundle.config, scores={"calibration": {"knots": knots}})
    assert config.score_map == ScoreMap.of(knots)


def test_others_may_read_it(bundle: Bundle) -> None:
    """Not with the private permissions of the temporary directory that it was made in."""
    plain = bundle.path.parent / "plain"
    plain.mkdir()
    assert bundle.path.stat().st_mode == plain.stat().st_mode


def test_a_link_to_the_directory_is_followed_once(tmp_path: Path, bundle: Bundle) -> None:
    (tmp_path / "current").symlink_to(bundle.path)
    assert Bundle.load(tmp_path / "current").path == bundle.path.resolve()


def test_reading_one_needs_no_torch(repo_root: Path, bundle: Bundle) -> None:
    program = (
        "import sys; from model.bundle import Bundle;"
        "Bundle.load(sys.argv[1]).tokenizer().encode(['the dog'], 17);"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(bundle.path)],
        cwd=repo_root,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"


# -- damaged bundles ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", REQUIRED_FILES)
def test_one_changed_byte_is_found(bundle: Bundle, name: str) -> None:
    path = bundle.path / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(BundleError, match=f"{name} is damaged"):
        Bundle.load(bundle.path)
    assert Bundle.load(bundle.path, verify=False).config == bundle.config


@pytest.mark.parametrize("name", REQUIRED_FILES)
@pytest.mark.parametrize("verify", [True, False])
def test_a_missing_file_is_found(bundle: Bundle, name: str, verify: bool) -> None:
    (bundle.path / name).unlink()
    with pytest.raises(BundleError, match=f"{name} is missing"):
        Bundle.load(bundle.path, verify=verify)


def test_a_truncated_file_is_found(bundle: Bundle) -> None:
    os.truncate(bundle.path / GRAPH_FILES[0], 10)
    with pytest.raises(BundleError, match="is damaged"):
        Bundle.load(bundle.path)


@pytest.mark.parametrize("verify", [True, False])
def test_what_does_not_belong_is_refused(bundle: Bundle, verify: bool) -> None:
    (bundle.path / "image_encoder.onnx.data").write_bytes(b"?")
    with pytest.raises(BundleError, match=r"image_encoder\.onnx\.data does not belong"):
        Bundle.load(bundle.path, verify=verify)


def test_a_foreign_directory_inside_is_refused(bundle: Bundle) -> None:
    (bundle.path / "cache").mkdir()
    with pytest.raises(BundleError, match="cache does not belong"):
        Bundle.load(bundle.path)


def test_the_file_systems_own_files_are_left_alone(bundle: Bundle) -> None:
    (bundle.path / ".DS_Store").write_bytes(b"")
    assert Bundle.load(bundle.path) == bundle


@pytest.mark.parametrize("name", [CONFIG_FILE, TOKENIZER_FILE])
def test_a_link_in_the_place_of_a_file_is_refused(
    tmp_path: Path, bundle: Bundle, name: str
) -> None:
    shutil.move(bundle.path / name, tmp_path / "elsewhere")
    (bundle.path / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=r"symbolic link|no regular file"):
        Bundle.load(bundle.path)


def test_a_directory_in_the_place_of_a_file_is_refused(bundle: Bundle) -> None:
    (bundle.path / TOKENIZER_FILE).unlink()
    (bundle.path / TOKENIZER_FILE).mkdir()
    with pytest.raises(BundleError, match=r"tokenizer\.json is missing"):
        Bundle.load(bundle.path)


def test_a_foreign_folder_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="there is no bundle directory"):
        Bundle.load(tmp_path / "nowhere")
    (tmp_path / "photos").mkdir()
    with pytest.raises(BundleError, match=r"no regular file config\.json"):
        Bundle.load(tmp_path / "photos")
    (tmp_path / "photos" / CONFIG_FILE).write_text('{"architectures": ["Bert"]}')
    with pytest.raises(BundleError, match="format version None"):
        Bundle.load(tmp_path / "photos")


def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path, sources: dict[str, Path]) -> None:
    sources[TOKENIZER_FILE] = sources[GRAPH_FILES[0]]
    written = write_bundle(tmp_path / "bundle", CONFIG, sources)
    with pytest.raises(BundleError, match="not a tokenizer file"):
        written.tokenizer()


# -- config.json --------------------------------------------------------------------------------


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


# -- writing ------------------------------------------------------------------------------------


def test_a_missing_source_leaves_nothing(tmp_path: Path, sources: dict[str, Path]) -> None:
    sources[GRAPH_FILES[1]].unlink()
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(BundleError, match=r"cannot write text_encoder\.onnx"):
        write_bundle(tmp_path / "deep" / "bundle", CONFIG, sources)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_forgotten_source_leaves_nothing(tmp_path: Path, sources: dict[str, Path]) -> None:
    del sources[TOKENIZER_FILE]
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(BundleError, match=r"needs tokenizer\.json"):
        write_bundle(tmp_path / "bundle", CONFIG, sources)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes", 1j])
def test_a_description_that_is_no_json_leaves_nothing(
    tmp_path: Path, sources: dict[str, Path], value: object
) -> None:
    before = sorted(os.listdir(tmp_path))
    with pytest.raises(BundleError, match="is not JSON"):
        write_bundle(tmp_path / "bundle", replace(CONFIG, scores={"mIoU": value}), sources)
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_full_disk_leaves_what_was_there(
    tmp_path: Path,
    sources: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    overwrite: bool,
) -> None:
    if overwrite:
        write_bundle(tmp_path / "bundle", CONFIG, sources)
    before = contents(tmp_path)
    copied = []

    def copy_until_full(source: Path, destination: Path) -> None:
        if len(copied) == 2:
            raise OSError(28, "No space left on device")
        copied.append(destination)
        destination.write_bytes(source.read_bytes())

    monkeypatch.setattr(bundle_module.shutil, "copyfile", copy_until_full)
    with pytest.raises(BundleError, match="No space left on device"):
        write_bundle(tmp_path / "bundle", replace(CONFIG, version="2"), sources, overwrite)
    assert len(copied) == 2
    assert contents(tmp_path) == before
    assert (tmp_path / "bundle").exists() == overwrite


def test_an_interruption_leaves_nothing(
    tmp_path: Path, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = sorted(os.listdir(tmp_path))
    monkeypatch.setattr(bundle_module, "_write_durably", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bundle(tmp_path / "bundle", CONFIG, sources)
    assert sorted(os.listdir(tmp_path)) == before


def test_an_existing_bundle_is_refused(bundle: Bundle, sources: dict[str, Path]) -> None:
    before = contents(bundle.path)
    with pytest.raises(BundleError, match="exists; choose another directory"):
        write_bundle(bundle.path, replace(CONFIG, version="2"), sources)
    assert contents(bundle.path) == before


def test_overwriting_replaces_all_of_it(
    tmp_path: Path, bundle: Bundle, sources: dict[str, Path]
) -> None:
    extended = write_bundle(
        bundle.path, CONFIG, {**sources, "model.safetensors": sources[GRAPH_FILES[0]]}, True
    )
    assert (extended.path / "model.safetensors").exists()
    renewed = write_bundle(bundle.path, replace(CONFIG, version="2"), sources, overwrite=True)
    assert Bundle.load(bundle.path) == renewed
    assert renewed.config.version == "2"
    assert not (bundle.path / "model.safetensors").exists()
    assert sorted(os.listdir(tmp_path)) == ["bundle", "sources"]


def test_the_old_bundle_stays_until_the_new_one_is_complete(
    bundle: Bundle, sources: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, seen = os.rename, []

    def watch(source: Path, target: Path) -> None:
        if source == bundle.path:  # about to give way: both must be whole at this moment
            seen.append(Bundle.load(bundle.path).config.version)
        elif target == bundle.path:
            seen.append(Bundle.load(source).config.version)
        rename(source, target)

    monkeypatch.setattr(bundle_module.os, "rename", watch)
    write_bundle(bundle.path, replace(CONFIG, version="2"), sources, overwrite=True)
    assert seen == ["1.2.3", "2"]


@pytest.mark.parametrize(
    ("failure", "raised"),
    [(OSError(5, "Input/output error"), BundleError), (KeyboardInterrupt(), KeyboardInterrupt)],
)
def test_a_swap_that_fails_brings_the_old_bundle_back(
    tmp_path: Path,
    bundle: Bundle,
    sources: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    raised: type[BaseException],
) -> None:
    rename = os.rename

    def refuse_new(source: Path, target: Path) -> None:
        if Path(source).name == "new":
            assert not bundle.path.exists()
            raise failure
        rename(source, target)

    monkeypatch.setattr(bundle_module.os, "rename", refuse_new)
    with pytest.raises(raised):
        write_bundle(bundle.path, replace(CONFIG, version="2"), sources, overwrite=True)
    assert Bundle.load(bundle.path) == bundle
    assert sorted(os.listdir(tmp_path)) == ["bundle", "sources"]


def test_only_a_sound_bundle_gives_way(
    tmp_path: Path, bundle: Bundle, sources: dict[str, Path]
) -> None:
    """A wrong path must not delete somebody's project, not even one with a config.json."""
    project = tmp_path / "project"
    project.mkdir()
    (project / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="not overwritten"):
        write_bundle(project, CONFIG, sources, overwrite=True)
    (project / CONFIG_FILE).write_text("{}")
    with pytest.raises(BundleError, match="not overwritten"):
        write_bundle(project, CONFIG, sources, overwrite=True)
    assert (project / "thesis.txt").read_text() == "years of work"
    (bundle.path / ".git").mkdir()
    with pytest.raises(BundleError, match="not overwritten"):
        write_bundle(bundle.path, CONFIG, sources, overwrite=True)
    with pytest.raises(BundleError, match="not a directory"):
        write_bundle(project / "thesis.txt", CONFIG, sources, overwrite=True)


def test_an_empty_directory_gives_way_when_allowed(
    tmp_path: Path, sources: dict[str, Path]
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(BundleError, match="exists"):
        write_bundle(tmp_path / "empty", CONFIG, sources)
    assert write_bundle(tmp_path / "empty", CONFIG, sources, overwrite=True).config.name
