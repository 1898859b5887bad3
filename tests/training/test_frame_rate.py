"""Frames per second: what is counted, what is not, and what the numbers are told with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from model.bundle import Bundle
from model.config import preset_config
from model.segvlm import SegVLM, build_segvlm
from training import frame_rate
from training.frame_rate import (
    STAGES,
    FrameRates,
    StageRate,
    bundle_frame_rates,
    network_frame_rates,
)


@pytest.fixture
def network(tiny_run: dict[str, Any]) -> SegVLM:
    section = tiny_run["model"]
    return build_segvlm(preset_config(section["preset"], **section["overrides"]))


class Stopwatch:
    """Answers scripted seconds, long for the first calls of each stage."""

    def __init__(self, warm_up: int, seconds: list[float]) -> None:
        self._script = [100.0] * warm_up + seconds
        self.calls = 0

    def __call__(self, call: Callable[[], object]) -> float:
        seconds = self._script[self.calls % len(self._script)]
        self.calls += 1
        return seconds


def test_the_median_after_the_warm_up_is_counted(
    network: SegVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Stopwatch(3, [0.4, 0.1, 0.2, 9.0, 0.3])
    monkeypatch.setattr(frame_rate, "_seconds", watch)
    rates = network_frame_rates(network, "cpu", (2,), repeats=5, warm_up=3)
    assert watch.calls == 8 * len(STAGES)
    assert tuple(rates.rates[2]) == STAGES
    for rate in rates.rates[2].values():
        assert rate.median == 0.3
        assert rate.fps == pytest.approx(2 / 0.3)
        assert rate.low < rate.median < rate.high < 9
    assert not network.training


def test_a_stage_runs_its_own_parts_and_no_others(
    network: SegVLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, int] = {}
    for name in ("image_encoder", "text_encoder", "decoder"):

        def count(module: Any, inputs: Any, output: Any, name: str = name) -> None:
            seen[name] = seen.get(name, 0) + 1

        getattr(network, name).register_forward_hook(count)
    ran: list[dict[str, int]] = []

    def watch(call: Callable[[], object]) -> float:
        seen.clear()
        call()
        ran.append(dict(seen))
        return 1.0

    monkeypatch.setattr(frame_rate, "_seconds", watch)
    network_frame_rates(network, "cpu", (1,), repeats=1, warm_up=1)
    whole = {"image_encoder": 1, "text_encoder": 1, "decoder": 1}
    image, expression = {"image_encoder": 1}, {"text_encoder": 1, "decoder": 1}
    assert ran == [whole, whole, image, image, expression, expression]


def test_measured_rates_are_told_with_their_circumstances(network: SegVLM) -> None:
    rates = network_frame_rates(network, "cpu", (1, 2), repeats=3, warm_up=1)
    content = json.loads(json.dumps(rates.to_dict(), allow_nan=False))
    assert (content["image_size"], content["precision"], content["repeats"]) == (64, "fp32", 3)
    assert torch.__version__.startswith(content["versions"]["torch"].partition("+")[0])
    assert content["device"]
    assert content["tf32"] is None
    assert [row["batch"] for row in content["batches"]] == [1, 2]
    for row in content["batches"]:
        for stage in STAGES:
            measured = row[stage]
            assert 0 < measured["p10_ms"] <= measured["median_ms"] <= measured["p90_ms"]
            assert measured["fps"] == pytest.approx(1000 * row["batch"] / measured["median_ms"])
    assert "64 x 64, fp32, on " in rates.to_markdown()


def test_the_table_says_what_it_holds() -> None:
    stages = {"whole": 0.02, "image": 0.0125, "expression": 0.008}
    rates = FrameRates(
        device="a device",
        precision="fp32",
        tf32={"convolutions": True, "matrix_products": False},
        image_size=416,
        word_length=17,
        repeats=50,
        warm_up=10,
        threads=1,
        versions={"torch": "2"},
        rates={1: {name: StageRate(1, t, t, t) for name, t in stages.items()}},
    )
    page = rates.to_markdown()
    assert "416 x 416, fp32 (TF32 convolutions), on a device (torch 2); median of 50 calls" in page
    assert "| 1 | 50.0 | 20.00 | 80.0 | 12.50 | 125.0 | 8.00 |" in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len({row.count("|") for row in rows}) == 1


def test_a_bundle_is_timed_through_its_graphs(default_bundle: Path) -> None:
    bundle = Bundle.load(default_bundle)
    rates = bundle_frame_rates(bundle, (1,), repeats=1, warm_up=1, threads=1)
    assert rates.image_size == bundle.config.image_size
    assert "onnxruntime" in rates.versions
    assert min(rate.fps for rate in rates.rates[1].values()) > 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"precision": "bf16"}, "the CPU has fp32"),
        ({"precision": "fp8"}, "precision 'fp8'"),
        ({"batch_sizes": (0,)}, "1 or more"),
        ({"repeats": -1}, "1 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    network: SegVLM, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        network_frame_rates(network, "cpu", **options)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_gpu_is_waited_for(network: SegVLM, precision: str) -> None:
    rates = network_frame_rates(network.cuda(), "cuda", (1, 8), precision=precision)
    assert (rates.repeats, rates.warm_up) == (50, 10)
    assert (rates.tf32 is not None) == (precision == "fp32")
    for stages in rates.rates.values():
        # A launch that nobody waits for takes microseconds.
        assert min(rate.median for rate in stages.values()) > 1e-4
