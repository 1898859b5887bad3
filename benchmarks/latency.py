"""How long a bundle takes on this machine's CPU, stage by stage, batch 1.

    python benchmarks/latency.py [--bundle DIR] [--threads 2] [--runs 100] [--json FILE]

Times the three ONNX graphs as the service runs them, without HTTP, decoding or mask encoding, on
fixed random input. Prints a table; quote the median and the machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model.bundle import DEFAULT_BUNDLE
from service.backends.base import LoadOptions
from service.backends.onnx import load_onnx

_WARM_UP = 10


def measure(bundle: Path, threads: int, runs: int) -> dict[str, Any]:
    """Milliseconds of each stage: median, p99 and minimum over `runs` runs in turn."""
    model = load_onnx(bundle, LoadOptions(device="cpu", threads=threads))
    backend, spec = model.backend, model.spec
    size = spec.image_size
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, 3), dtype=np.uint8)
    tokens = model.tokenizer.encode(["the black baseball cap on the left"], spec.word_length).tokens
    pyramid, text = backend.encode_image(image), backend.encode_text(tokens)
    stages: dict[str, Callable[[], Any]] = {
        "image": lambda: backend.encode_image(image),
        "text": lambda: backend.encode_text(tokens),
        "decode": lambda: backend.decode(pyramid, text)(),
    }
    samples: dict[str, list[float]] = {name: [] for name in (*stages, "whole")}
    for run in range(runs + _WARM_UP):
        spent = {}
        for name, stage in stages.items():
            start = time.perf_counter()
            stage()
            spent[name] = 1000 * (time.perf_counter() - start)
        if run >= _WARM_UP:
            for name, value in (*spent.items(), ("whole", sum(spent.values()))):
                samples[name].append(value)
    return {
        "model": f"{spec.name} {spec.version}",
        "image_size": size,
        "threads": threads,
        "runs": runs,
        "machine": f"{_processor()}, {platform.system()}, Python {platform.python_version()}",
        "milliseconds": {name: _summary(values) for name, values in samples.items()},
    }


def _summary(values: list[float]) -> dict[str, float]:
    return {
        "median": statistics.median(values),
        "p99": float(np.percentile(values, 99)),
        "min": min(values),
    }


def _processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    result = measure(options.bundle, options.threads, options.runs)
    print(
        f"{result['model']} at {result['image_size']} px, {options.threads} threads, "
        f"{result['machine']}\n"
    )
    print("| stage | median ms | p99 ms | min ms |\n|---|--:|--:|--:|")
    for name, row in result["milliseconds"].items():
        print(f"| {name} | {row['median']:.1f} | {row['p99']:.1f} | {row['min']:.1f} |")
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
