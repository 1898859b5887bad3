"""The model alone: latency and rate by backend, precision and batch size.

    python -m benchmarks.inference [--bundle DIR] [--backend onnx] [--device auto]
        [--precision auto] [--threads 0] [--batch 1 2 4 8] [--seconds 3] [--stages] [--json FILE]
    python -m benchmarks.inference --preset segvlm-rn101 --backend torch --precision bf16
        --batch 1 8 32 64                               random weights, no bundle needed

A row encodes `batch` images and as many expressions and decodes them: nothing is cached, nothing
else is done. Latency is from the call to the logits in main memory; the rate keeps a second batch
ready where the backend is asynchronous, as the service does. The share of the matrix peak is the
operations that the configuration counts (`training/complexity.py`; a multiply-add is 2), over those
of a large matrix product of the same precision measured here; it is left out without torch.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import machine
from model.bundle import DEFAULT_BUNDLE, Bundle
from model.config import SegVLMConfig, preset_config
from service.backends import BACKENDS, load_model
from service.backends.base import Backend, LoadedModel, LoadOptions

_WORDS = ("the black baseball cap on the left", "a dog", "second chair from the window")


class Bench:
    """A backend with input for it."""

    def __init__(self, model: LoadedModel) -> None:
        self.backend: Backend[Any] = model.backend
        self.spec = model.spec
        largest, side = self.backend.batch_sizes[-1], self.spec.image_size
        rng = np.random.default_rng(0)
        self._images = rng.integers(0, 256, (largest, side, side, 3), dtype=np.uint8)
        texts = [_WORDS[place % len(_WORDS)] for place in range(largest)]
        self._tokens = model.tokenizer.encode(texts, self.spec.word_length).tokens

    def launch(self, batch: int) -> Any:
        """One batch through the three stages; the answer is waited for by calling it."""
        images = self.backend.encode_image(self._images[:batch])
        return self.backend.decode(images, self.backend.encode_text(self._tokens[:batch]))

    def latencies(self, batch: int, seconds: float) -> list[float]:
        """Milliseconds of batches one after another, at least five."""
        samples: list[float] = []
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(samples) < 5:
            start = time.perf_counter()
            self.launch(batch)()
            samples.append(1000 * (time.perf_counter() - start))
        return samples

    def rate(self, batch: int, seconds: float) -> float:
        """Pairs a second with one batch ready while another runs."""
        ahead = 2 if self.backend.asynchronous else 1
        flying: deque[Any] = deque()
        done, start = 0, time.perf_counter()
        while (now := time.perf_counter()) - start < seconds or done < 2:
            flying.append(self.launch(batch))
            if len(flying) >= ahead:
                flying.popleft()()
                done += 1
        while flying:
            flying.popleft()()
            done += 1
            now = time.perf_counter()
        return done * batch / (now - start)

    def stages(self, seconds: float) -> dict[str, float]:
        """Median milliseconds of each stage at batch 1, each waited for: synchronous backends."""
        backend = self.backend
        image, tokens = self._images[:1], self._tokens[:1]
        pyramid, text = backend.encode_image(image), backend.encode_text(tokens)
        parts: dict[str, Callable[[], object]] = {
            "encode image": lambda: backend.encode_image(image),
            "encode text": lambda: backend.encode_text(tokens),
            "decode": lambda: backend.decode(pyramid, text)(),
        }
        samples: dict[str, list[float]] = {name: [] for name in parts}
        end = time.perf_counter() + seconds
        while time.perf_counter() < end or len(samples["decode"]) < 5:
            for name, part in parts.items():
                start = time.perf_counter()
                part()
                samples[name].append(1000 * (time.perf_counter() - start))
        return {name: float(np.median(values)) for name, values in samples.items()}


def load(options: argparse.Namespace, precision: str) -> tuple[LoadedModel, SegVLMConfig]:
    """The model that the options name, and its configuration, for counting."""
    load_options = LoadOptions(
        device=options.device,
        precision=precision,  # type: ignore[arg-type] # checked by the parser
        threads=options.threads,
        max_batch_size=max(options.batch),
        compile=not options.no_compile,
    )
    if options.preset:
        from service.backends.torch import load_network

        config = preset_config(options.preset)
        return load_network(_random_network(config), load_options), config
    bundle = Bundle.load(options.bundle, verify=False).config
    config = preset_config(bundle.preset, image_size=bundle.image_size)
    return load_model(options.backend, options.bundle, load_options), config


def _random_network(config: SegVLMConfig) -> Any:
    import torch

    from model.segvlm import build_segvlm

    torch.manual_seed(0)
    return build_segvlm(config).eval()


def pair_gflop(config: SegVLMConfig) -> float | None:
    """Operations of one image with one expression; None without torch."""
    try:
        from training.complexity import measure_complexity
    except ImportError:
        return None
    return measure_complexity(config).total_flops / 1e9


def matrix_peak(backend: Backend[Any]) -> float | None:
    """Operations a second of a large matrix product on the backend's device, the best of ten."""
    try:
        import torch
    except ImportError:
        return None
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(backend.precision, torch.float32)
    on_gpu = backend.name.endswith(("cuda", "tensorrt"))
    side, device = (8192, "cuda") if on_gpu else (1024, "cpu")
    one = torch.randn(side, side, device=device).to(dtype)

    def seconds() -> float:
        start = time.perf_counter()
        one @ one
        if on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return float(2 * side**3 / min(seconds() for _ in range(12)))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is printed and written."""
    rows: list[dict[str, Any]] = []
    result: dict[str, Any] = {"machine": machine.describe(), "rows": rows, "stages": {}}
    for precision in options.precision:
        model, config = load(options, precision)
        bench = Bench(model)
        gflop, peaks = pair_gflop(config), [matrix_peak(model.backend)]
        first = len(rows)
        result["model"] = f"{model.spec.name} {model.spec.version}, {model.spec.image_size} px"
        result["device"] = _device_name(model.backend)
        for batch in options.batch:
            bench.latencies(batch, options.seconds / 4)  # compiles, captures, warms caches
            samples = bench.latencies(batch, options.seconds / 2)
            rate = bench.rate(batch, options.seconds)
            rows.append(
                {
                    "backend": model.backend.name,
                    "precision": model.backend.precision,
                    "batch": batch,
                    "p50_ms": float(np.median(samples)),
                    "p99_ms": float(np.percentile(samples, 99)),
                    "pairs_per_second": rate,
                }
            )
            peaks.append(matrix_peak(model.backend))
        for row in rows[first:]:
            row["peak_share"] = _share(row["pairs_per_second"], gflop, peaks)
        if options.stages:
            result["stages"][model.backend.precision] = bench.stages(options.seconds)
    return result


def _share(rate: float, gflop: float | None, peaks: Sequence[float | None]) -> float | None:
    """Of the highest peak: a machine whose clock or neighbours vary may be slow in one of them."""
    known = [peak for peak in peaks if peak is not None]
    return rate * gflop * 1e9 / max(known) if gflop and known else None


def _device_name(backend: Backend[Any]) -> str:
    if backend.name.endswith(("cuda", "tensorrt")):
        import torch

        return str(torch.cuda.get_device_name())
    return machine.processor()


def print_tables(result: dict[str, Any]) -> None:
    """Markdown."""
    print(f"{result['model']}; {result['device']}; {result['machine']}\n")
    print("| backend | precision | batch | p50 ms | p99 ms | pairs/s | of the matrix peak |")
    print("|---|---|--:|--:|--:|--:|--:|")
    for row in result["rows"]:
        share = "-" if row["peak_share"] is None else f"{row['peak_share']:.0%}"
        print(
            f"| {row['backend']} | {row['precision']} | {row['batch']} | {row['p50_ms']:.1f} | "
            f"{row['p99_ms']:.1f} | {row['pairs_per_second']:.1f} | {share} |"
        )
    for precision, stages in result["stages"].items():
        told = ", ".join(f"{name} {value:.1f}" for name, value in stages.items())
        print(f"\n{precision}, batch 1, median ms of each stage: {told}")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    what.add_argument("--preset", help="random weights of a preset, with the torch backend")
    parser.add_argument("--backend", choices=BACKENDS, default="onnx")
    parser.add_argument("--device", default="auto")
    precisions = ("auto", "fp32", "fp16", "bf16", "int8")
    parser.add_argument("--precision", nargs="+", choices=precisions, default=["auto"])
    parser.add_argument("--threads", type=int, default=0, help="of a CPU, 0 = one for each core")
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 2, 4, 8])
    parser.add_argument("--no-compile", action="store_true", help="with torch on a GPU")
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--stages", action="store_true", help="also each stage on its own")
    parser.add_argument("--json", help="a file, or - for the terminal")
    parser.add_argument("--quiet", action="store_true", help="no table")
    options = parser.parse_args(arguments)
    if options.preset and options.backend != "torch":
        parser.error("--preset needs --backend torch: there is no bundle with graphs to run")
    result = measure(options)
    if not options.quiet:
        print_tables(result)
    if options.json == "-":
        json.dump(result, sys.stdout)
    elif options.json:
        Path(options.json).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
