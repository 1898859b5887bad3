"""Which of ONNX Runtime's session options pay on this machine's CPU.

    python -m benchmarks.onnx_options [--bundle DIR] [--rounds 30] [--json FILE]

One option at a time is changed from what the service sets (`service/backends/onnx_graphs.py`), and
one variant changes nothing: what differs no more than that one is noise. A row is one image with
one expression through all three graphs, and eight of them in a batch, on one thread; variants take
turns. Milliseconds of processor time, the tenth percentile: other programs disturb it least.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks import machine
from model.bundle import DEFAULT_BUNDLE, Bundle
from service.backends.onnx_graphs import Graph, open_graphs, session_options

BATCHES = (1, 8)

Change = Callable[[Any], None]


def _entry(key: str, value: str) -> Change:
    return lambda options: options.add_session_config_entry(key, value)


def _attribute(name: str, value: Any) -> Change:
    return lambda options: setattr(options, name, value)


VARIANTS: dict[str, Change] = {
    "as served": lambda options: None,
    "as served, again": lambda options: None,
    "graph optimisation: layout": _attribute(
        "graph_optimization_level", ort.GraphOptimizationLevel.ORT_ENABLE_LAYOUT
    ),
    "graph optimisation: extended": _attribute(
        "graph_optimization_level", ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ),
    "graph optimisation: basic": _attribute(
        "graph_optimization_level", ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    ),
    "no memory arena": _attribute("enable_cpu_mem_arena", False),
    "no memory pattern": _attribute("enable_mem_pattern", False),
    "denormals as zero": _entry("session.set_denormal_as_zero", "1"),
    "no prepacking": _entry("session.disable_prepacking", "1"),
}


class Variant:
    """The three graphs of a bundle under one change of the session options."""

    def __init__(self, bundle: Bundle, change: Change) -> None:
        def open_session(path: Path, _: object) -> Any:
            options = session_options(threads=1)
            change(options)
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

        self._image, self._text, self._mask = open_graphs(bundle, "fp32", open_session)

    def run(self, images: Any, tokens: Any) -> None:
        _run(self._mask, [*_run(self._image, [images]), *_run(self._text, [tokens])])


def _run(graph: Graph, inputs: Sequence[Any]) -> list[Any]:
    names = (value.name for value in graph.inputs)
    outputs: list[Any] = graph.session.run(None, dict(zip(names, inputs, strict=True)))
    return outputs


def measure(bundle: Bundle, rounds: int) -> dict[str, dict[int, float]]:
    """Milliseconds by variant and batch."""
    side = bundle.config.image_size
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (max(BATCHES), side, side, 3), dtype=np.uint8)
    texts = ["the black baseball cap on the left"] * max(BATCHES)
    tokens = bundle.tokenizer().encode(texts, bundle.config.word_length).tokens
    variants = {name: Variant(bundle, change) for name, change in VARIANTS.items()}
    spent: dict[tuple[str, int], list[float]] = {}
    for turn in range(rounds + 1):
        for name in rng.permutation(list(variants)):
            for batch in BATCHES:
                start = time.process_time()
                variants[name].run(images[:batch], tokens[:batch])
                if turn:  # the first plans its memory
                    spent.setdefault((name, batch), []).append(time.process_time() - start)
    return {
        name: {batch: 1000 * float(np.percentile(spent[name, batch], 10)) for batch in BATCHES}
        for name in variants
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bundle", type=Path, default=DEFAULT_BUNDLE)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bundle = Bundle.load(options.bundle)
    measured = measure(bundle, options.rounds)
    print(
        f"{bundle.config.name} {bundle.config.version}, {bundle.config.image_size} px; "
        f"ONNX Runtime {ort.__version__}; {machine.describe()}\n"
    )
    print("| options | ms, batch 1 | ms, batch 8 | batch 1 | batch 8 |\n|---|--:|--:|--:|--:|")
    first = next(iter(measured.values()))
    for name, row in measured.items():
        times = " | ".join(f"{row[batch]:.1f}" for batch in BATCHES)
        changes = " | ".join(f"{row[batch] / first[batch] - 1:+.0%}" for batch in BATCHES)
        print(f"| {name} | {times} | {changes} |")
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
