"""The benchmark of training steps runs the trainer's update and counts what it did."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from model.config import preset_config
from training.complexity import training_step_flops
from training.part_times import PartTime, part_table

pytestmark = pytest.mark.long(30)


def benchmark(repo_root: Path, name: str) -> ModuleType:
    path = repo_root / "benchmarks" / f"{name}.py"
    specification = importlib.util.spec_from_file_location(name, path)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # where dataclasses look up their own module
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def throughput(repo_root: Path) -> ModuleType:
    return benchmark(repo_root, "train_throughput")


def run(module: ModuleType, command: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    quick = "--preset segvlm-lite --size 64 --precision fp32 --steps 2 --repeats 2 --warm-up 1"
    monkeypatch.setattr(sys, "argv", f"x {quick} {command} --json {out}".split())
    monkeypatch.setattr(module, "pick_device", lambda: torch.device("cpu"))
    module.main()
    return json.loads(out.read_text("utf-8"))


def test_a_row_for_each_combination(
    throughput: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = "--batch 1 2 --phrases 3 --ema 0.9"
    result = run(throughput, command, tmp_path / "result.json", monkeypatch)
    assert [(row["batch"], row["phrases"]) for row in result["rows"]] == [(1, 3), (2, 3)]
    peak = 1e12 * result["matrix_peak_tflops"]["fp32"]
    for row in result["rows"]:
        assert row["phrases_per_second"] == pytest.approx(3 * row["images_per_second"])
        assert row["step_ms"] == pytest.approx(1000 * row["batch"] / row["images_per_second"])
        low, high = row["images_per_second_range"]
        assert 0 < low <= row["images_per_second"] <= high
        network = preset_config("segvlm-lite", image_size=64)
        flops = training_step_flops(network, row["batch"], 3 * row["batch"])
        assert row["step_gflop"] == pytest.approx(flops / 1e9)
        assert row["mfu"] == pytest.approx(flops / (row["step_ms"] / 1000) / peak)
        assert row["data_wait_share"] < 0.5
    told = capsys.readouterr().out
    assert "matrix peak measured, fp32" in told and "| segvlm-lite | 64 | 2 | 3 |" in told


@pytest.mark.slow
def test_the_loaders_batches_and_the_parts(
    throughput: ModuleType,
    repo_root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = tmp_path / "drawn.lmdb"
    benchmark(repo_root, "data_loading").make_store(store, photos=4)
    command = f"--batch 2 --data {store} --ema 0.9 --profile --profile-rows 3"
    result = run(throughput, command, tmp_path / "result.json", monkeypatch)
    (row,) = result["rows"]
    assert 0 < row["data_wait_share"] < 1
    parts = {part["part"]: part for part in row["parts"]}
    for name in ("image_encoder", "decoder", "projector.enhancement.spatial"):
        assert parts[name]["flops"] > 0 and parts[name]["milliseconds"] > 0
    assert {"loss", "optimiser", "averaging"} <= parts.keys()
    whole = ("image_encoder", "text_encoder", "neck", "decoder", "projector")
    laterals = (name for name in parts if name.startswith("neck."))
    counted = sum(parts[name]["flops"] for name in (*whole, *laterals))
    # Alone, every part also makes the gradient of its input, which the first one does not need.
    assert counted == pytest.approx(1e9 * row["step_gflop"], rel=0.02)
    told = capsys.readouterr().out
    assert "aten::" in told and "| projector.enhancement.spatial |" in told


def test_resident_batches_are_shaped_as_the_trainers(throughput: ModuleType) -> None:
    network = preset_config("segvlm-lite", image_size=64)
    batch = throughput.resident_batches(network, 2, 3, pin=False)[0]
    assert batch.images.shape == (2, 64, 64, 3) and batch.images.dtype == torch.uint8
    assert batch.tokens.shape == (6, network.word_length) and batch.tokens.dtype == torch.int64
    assert batch.targets.shape == (6, 16, 16) and batch.targets.dtype == torch.float32
    assert batch.targets.any(dim=(1, 2)).all()
    assert batch.image_index.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_row_that_did_not_fit_is_shown(throughput: ModuleType) -> None:
    options = argparse.Namespace(
        preset=["segvlm-rn101"],
        size=None,
        batch=[512],
        phrases=[1],
        precision=["bf16"],
        layout=["channels_last"],
        compile=["off", "on"],
        ema=[0.0],
    )
    off, on = throughput.settings(options)
    assert (off.size, off.compile, on.compile) == (416, False, True)
    row = {**off.__dict__, "failed": "out of memory"}
    last = throughput.table([row]).splitlines()[-1]
    assert "out of memory" in last
    assert last.count("|") == throughput.table([row]).splitlines()[0].count("|")


def test_what_a_part_reached_of_the_peak() -> None:
    part = PartTime("decoder", milliseconds=2.0, flops=10**9)
    assert part.share_of(1e12) == pytest.approx(0.5)
    assert PartTime("loss", 1.0, None).share_of(1e12) is None
    assert "| decoder | 2.00 | 1.0 | 50.0% |" in part_table([part], 1e12)
