"""Frames per second of a network, as the paper counts them: its forward pass alone, on the device.

The paper gives 40 to 45 FPS at 416 x 416 (section 4). Counted is the network with inputs that are
already on the device: no decoding of photos, no tokenising, no mask at the photo's size. Measured
are a whole pass (B images with one expression each), and its two stages apart: the images, which
are encoded once, and the expressions on images that are encoded already.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.bundle import Bundle
from model.segvlm import SegVLM
from model.tokenizer import END_ID, START_ID
from training.onnx_graphs import OnnxGraphs
from training.versions import versions

Call = Callable[[], object]
Timer = Callable[[Call], float]
"""Runs a call to its end and answers its seconds."""

STAGES = ("whole", "image", "expression")
_TITLES = {"whole": "image + expression", "image": "image alone", "expression": "expression alone"}
_WORDS = 4


@dataclass(frozen=True)
class StageRate:
    """One stage at one batch size. Seconds of a call: the median, and the 10th and 90th
    percentile; `fps` is images (or expressions) a second at the median."""

    batch: int
    median: float
    low: float
    high: float

    @property
    def fps(self) -> float:
        return self.batch / self.median


@dataclass(frozen=True)
class FrameRates:
    """What was measured, and on what.

    rates: by batch size, then by stage (`STAGES`). precision: "fp32", "bf16", "fp16" or "int8";
    with fp32 on a GPU `tf32` says whether its convolutions and matrix products rounded their
    inputs to TF32.
    """

    device: str
    precision: str
    tf32: Mapping[str, bool] | None
    image_size: int
    word_length: int
    repeats: int
    warm_up: int
    threads: int
    versions: Mapping[str, str]
    rates: Mapping[int, Mapping[str, StageRate]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; times in milliseconds."""
        return {
            "device": self.device,
            "precision": self.precision,
            "tf32": None if self.tf32 is None else dict(self.tf32),
            "image_size": self.image_size,
            "word_length": self.word_length,
            "repeats": self.repeats,
            "warm_up": self.warm_up,
            "threads": self.threads,
            "versions": dict(self.versions),
            "batches": [
                {"batch": batch, **{name: _stage_dict(rate) for name, rate in stages.items()}}
                for batch, stages in self.rates.items()
            ],
        }

    def to_markdown(self) -> str:
        """A table of frames per second and milliseconds."""
        heads = " | ".join(f"{_TITLES[stage]}, FPS | ms" for stage in STAGES)
        engine = "onnxruntime" if "onnxruntime" in self.versions else "torch"
        lines = [
            f"Forward pass alone at {self.image_size} x {self.image_size}, {self.precision}"
            f"{_tf32_note(self.tf32)}, on {self.device} ({engine} {self.versions[engine]}); median "
            f"of {self.repeats} calls after {self.warm_up} to warm up.",
            "",
            f"| batch | {heads} |",
            "|--:" + "|--:|--:" * len(STAGES) + "|",
        ]
        for batch, stages in self.rates.items():
            cells = (f"{rate.fps:.1f} | {1000 * rate.median:.2f}" for rate in stages.values())
            lines.append(f"| {batch} | {' | '.join(cells)} |")
        return "\n".join(lines) + "\n"


def network_frame_rates(
    model: SegVLM,
    device: torch.device | str,
    batch_sizes: Sequence[int] = (),
    *,
    precision: str = "fp32",
    repeats: int = 0,
    warm_up: int = 0,
) -> FrameRates:
    """Of a network in torch; it is put into evaluation mode and stays on its device.

    batch_sizes: default 1, 8 and 32 on a GPU, 1 and 4 on the CPU. precision: "fp32", or on a GPU
    "bf16" and "fp16" (autocast). repeats, warm_up: calls, default 50 and 10 on a GPU, 7 and 2 on
    the CPU.

    Raises ValueError for numbers below 1 and for reduced precision on the CPU.
    """
    device = torch.device(device)
    on_gpu = device.type == "cuda"
    if precision not in _DTYPES or (precision != "fp32" and not on_gpu):
        raise ValueError(f"precision {precision!r} on {device}: the CPU has fp32, a GPU bf16 too")
    model.eval()
    repeats, warm_up = repeats or (50 if on_gpu else 7), warm_up or (10 if on_gpu else 2)
    config = model.config

    @torch.inference_mode()
    def measure(batch: int) -> dict[str, StageRate]:
        image, tokens = (
            torch.from_numpy(each).to(device)
            for each in _inputs(batch, config.image_size, config.word_length)
        )
        # Casts of the weights are cached within the context, so they belong to the warm-up.
        with torch.autocast(device.type, _DTYPES[precision], enabled=precision != "fp32"):
            calls = _network_calls(model, image, tokens)
            return _measure(calls, batch, _cuda_seconds if on_gpu else _seconds, repeats, warm_up)

    return FrameRates(
        device=_device_name(device),
        precision=precision,
        tf32=_tf32() if on_gpu and precision == "fp32" else None,
        image_size=config.image_size,
        word_length=config.word_length,
        repeats=repeats,
        warm_up=warm_up,
        threads=torch.get_num_threads(),
        versions={**versions(), "cuda": torch.version.cuda or "none"},
        rates={
            batch: measure(batch) for batch in batch_sizes or ((1, 8, 32) if on_gpu else (1, 4))
        },
    )


def bundle_frame_rates(
    bundle: Bundle,
    batch_sizes: Sequence[int] = (1, 4),
    *,
    repeats: int = 7,
    warm_up: int = 2,
    threads: int = 0,
    precision: str | None = None,
) -> FrameRates:
    """Of a bundle's ONNX graphs on the CPU; `threads` as in `OnnxGraphs`, `precision` as in
    `Bundle.graphs`, or without one the service's choice."""
    import onnxruntime

    precision = precision or bundle.cpu_precision
    config, graphs = bundle.config, OnnxGraphs(bundle.graphs(precision), threads)

    def measure(batch: int) -> dict[str, StageRate]:
        calls = _graph_calls(graphs, *_inputs(batch, config.image_size, config.word_length))
        return _measure(calls, batch, _seconds, repeats, warm_up)

    return FrameRates(
        device=_device_name(torch.device("cpu")),
        precision=precision,
        tf32=None,
        image_size=config.image_size,
        word_length=config.word_length,
        repeats=repeats,
        warm_up=warm_up,
        threads=threads,
        versions={**versions(), "onnxruntime": onnxruntime.__version__},
        rates={batch: measure(batch) for batch in batch_sizes},
    )


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def _network_calls(model: SegVLM, image: Tensor, tokens: Tensor) -> dict[str, Call]:
    pyramid = model.encode_image(image)
    return {
        "whole": lambda: model(image, tokens),
        "image": lambda: model.encode_image(image),
        "expression": lambda: model.decode(*pyramid, *model.encode_text(tokens)),
    }


def _graph_calls(graphs: OnnxGraphs, image: Any, tokens: Any) -> dict[str, Call]:
    pyramid = graphs.encode_image(image)
    return {
        "whole": lambda: graphs.decode(graphs.encode_image(image), graphs.encode_text(tokens)),
        "image": lambda: graphs.encode_image(image),
        "expression": lambda: graphs.decode(pyramid, graphs.encode_text(tokens)),
    }


def _measure(
    calls: Mapping[str, Call], batch: int, seconds: Timer, repeats: int, warm_up: int
) -> dict[str, StageRate]:
    if min(batch, repeats, warm_up) < 1:
        raise ValueError("batch sizes, repeats and warm-up must be 1 or more")
    rates = {}
    for name in STAGES:
        for _ in range(warm_up):
            seconds(calls[name])
        times = sorted(seconds(calls[name]) for _ in range(repeats))
        low, high = np.quantile(times, (0.1, 0.9))
        rates[name] = StageRate(batch, statistics.median(times), float(low), float(high))
    return rates


def _seconds(call: Call) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _cuda_seconds(call: Call) -> float:
    """From the first kernel's launch to the last one's end, gaps between launches included."""
    begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    begin.record()
    call()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def _inputs(batch: int, image_size: int, word_length: int) -> tuple[Any, Any]:
    """Noise images (B, S, S, 3) uint8 and expressions of a few random words (B, L) int64."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (batch, image_size, image_size, 3), dtype=np.uint8)
    words = min(_WORDS, word_length - 2)
    tokens = np.zeros((batch, word_length), dtype=np.int64)
    tokens[:, 0], tokens[:, words + 1] = START_ID, END_ID
    tokens[:, 1 : words + 1] = rng.integers(1, START_ID, (batch, words))
    return image, tokens


def _stage_dict(rate: StageRate) -> dict[str, float]:
    times = {"median_ms": rate.median, "p10_ms": rate.low, "p90_ms": rate.high}
    return {"fps": rate.fps, **{name: 1000 * seconds for name, seconds in times.items()}}


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _tf32() -> dict[str, bool]:
    return {
        "convolutions": bool(torch.backends.cudnn.allow_tf32),
        "matrix_products": bool(torch.backends.cuda.matmul.allow_tf32),
    }


def _tf32_note(tf32: Mapping[str, bool] | None) -> str:
    used = [name.replace("_", " ") for name, on in (tf32 or {}).items() if on]
    return f" (TF32 {' and '.join(used)})" if used else ""
