"""Training steps a second on this device, what they reach of its matrix peak, and what they lose.

    python benchmarks/train_throughput.py [--preset segvlm-lite] [--size 224] [--batch 8 16]
        [--phrases 1 4] [--precision fp32 bf16] [--layout contiguous channels_last]
        [--compile off on] [--ema 0 0.998] [--data STORE --workers 8] [--profile] [--json FILE]

Several values of an option make a table of all their combinations. Each row runs the trainer's own
update (forward, loss, backward, optimiser, averaging) in this process. Without --data the batches
are made beforehand and wait in memory, so the step alone is measured; with it they come from the
trainer's loader. Defaults are small on a CPU and the paper's model at 416 x 416 on a GPU.

MFU is the step's counted operations (a multiply-add is 2; see `training/complexity.py`) a second,
over those of a large matrix product in the same precision, measured here.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model.config import SegVLMConfig, preset_config
from model.segvlm import build_segvlm
from model.tokenizer import clip_tokenizer
from training.complexity import training_step_flops
from training.config import TrainConfig, config_from_dict
from training.data.dataset import Batch, TrainingBatches
from training.data.lmdb_store import PhraseStore
from training.distributed import Processes, pick_device
from training.learner import Learner
from training.optimisation import Schedule
from training.part_times import part_table, part_times
from training.setup import choose_kernels

_WORDS = ("the cap", "the black baseball cap on the left", "second chair from the window")
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_RESIDENT = 4  # different batches that wait in memory


@dataclass(frozen=True)
class Setting:
    """One row of the table. size: input side in pixels. phrases: of each image."""

    preset: str
    size: int
    batch: int
    phrases: int
    precision: str
    layout: str
    compile: bool
    ema: float

    def config(self, store: str, workers: int, steps: int) -> TrainConfig:
        """The run whose update is timed."""
        return config_from_dict(
            {
                "model": {"preset": self.preset, "overrides": {"image_size": self.size}},
                "data": {
                    "store": store,
                    "images_per_batch": self.batch,
                    "phrases_per_image": self.phrases,
                    "workers": workers,
                },
                "optim": {
                    "steps": steps,
                    "precision": self.precision,
                    "channels_last": self.layout == "channels_last",
                    "compile": self.compile,
                    "ema_decay": self.ema,
                },
            }
        )


# -- batches ----------------------------------------------------------------------------------


def resident_batches(network: SegVLMConfig, images: int, phrases: int, pin: bool) -> list[Batch]:
    """Noise with rectangles as targets, in the shapes and types of the trainer's batches."""
    generator = torch.Generator().manual_seed(0)
    side, count = network.image_size, images * phrases
    texts = [_WORDS[place % len(_WORDS)] for place in range(count)]
    tokens = torch.from_numpy(clip_tokenizer().encode(texts, network.word_length).tokens)
    found = []
    for _ in range(_RESIDENT):
        pixels = torch.randint(0, 256, (images, side, side, 3), generator=generator).byte()
        targets = torch.zeros(count, side // 4, side // 4)
        for target, corner in zip(
            targets, torch.randint(0, side // 8, (count, 2), generator=generator), strict=True
        ):
            top, left = corner.tolist()
            target[top : top + side // 12, left : left + side // 10] = 1
        index = torch.arange(images).repeat_interleave(phrases)
        batch = Batch(pixels, tokens, targets, index)
        found.append(Batch(*(part.pin_memory() for part in batch)) if pin else batch)
    return found


def loaded_batches(config: TrainConfig, network: SegVLMConfig, pin: bool) -> Iterator[Batch]:
    """What the trainer's loader gives, from `config.data.store`."""
    assert config.optim.steps is not None
    batches = TrainingBatches(
        PhraseStore(Path(config.data.store)),
        clip_tokenizer(),
        config.data,
        image_size=network.image_size,
        word_length=network.word_length,
        steps=config.optim.steps,
        seed=0,
    )
    loader: DataLoader[Batch] = DataLoader(
        batches, batch_size=None, num_workers=config.data.workers, pin_memory=pin
    )
    return (Batch(*parts) for parts in loader)


# -- measuring --------------------------------------------------------------------------------


class Device:
    """The device and its clock."""

    def __init__(self) -> None:
        self.torch = pick_device()
        self.is_gpu = self.torch.type == "cuda"

    @property
    def name(self) -> str:
        if self.is_gpu:
            return torch.cuda.get_device_name(self.torch)
        return f"{_processor()}, {torch.get_num_threads()} threads"

    def seconds(self, run: Callable[[], object]) -> float:
        """Of `run`, to the end of what it started on the device."""
        self.wait()
        start = time.perf_counter()
        run()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        if self.is_gpu:
            torch.cuda.synchronize()

    def forget(self) -> None:
        """Free what the row before held, so that it counts in no other row."""
        gc.collect()
        torch._dynamo.reset()
        if self.is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def memory_gib(self) -> float:
        """The most that tensors held on a GPU; on a CPU the most that the process ever had."""
        if self.is_gpu:
            return torch.cuda.max_memory_allocated() / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 2**30

    def matrix_peak(self, precision: str) -> float:
        """Operations a second of a large square product, the best of several."""
        side = 8192 if self.is_gpu else 1024
        one = torch.randn(side, side, device=self.torch).to(_DTYPES[precision])
        if self.is_gpu:
            # fp32 convolutions use TF32 unless told otherwise, so its rate is their ceiling.
            torch.set_float32_matmul_precision("high")
        for _ in range(2):
            one @ one
        best = min(self.seconds(lambda: one @ one) for _ in range(10))
        return 2 * side**3 / best


class Bench:
    """A learner on the device, its batches, and the time that it waited for them."""

    def __init__(self, setting: Setting, config: TrainConfig, device: Device) -> None:
        assert config.optim.steps is not None
        self.setting, self.device = setting, device
        self.network = preset_config(setting.preset, image_size=setting.size)
        choose_kernels(config, device.torch)
        torch.manual_seed(0)
        schedule = Schedule(config.optim, config.optim.steps, ())
        processes = Processes(device.torch)
        self.learner = Learner(config, build_segvlm(self.network), schedule, processes)
        batches: Iterable[Batch]
        if config.data.store:
            batches = loaded_batches(config, self.network, device.is_gpu)
        else:
            resident = resident_batches(self.network, setting.batch, setting.phrases, device.is_gpu)
            batches = itertools.cycle(resident)
        self.batches = iter(batches)
        self._step = 0
        self.waited, self.images, self.expressions = 0.0, 0, 0

    def steps(self, count: int) -> None:
        """So many updates, as the trainer makes them."""
        for _ in range(count):
            asked = time.perf_counter()
            batch = next(self.batches)
            self.waited += time.perf_counter() - asked
            faults = self.learner.faults()
            if faults.loss is not None or faults.gradients:
                raise ValueError("the loss is not finite; choose another --precision")
            self.learner.update(self._step, (batch,), len(batch.tokens))
            self._step += 1
            self.images += len(batch.images)
            self.expressions += len(batch.tokens)


def measure(
    setting: Setting, device: Device, peak: float, options: argparse.Namespace
) -> dict[str, Any]:
    """One row: medians over `options.repeats` stretches of `options.steps` updates."""
    device.forget()
    total = options.warm_up + options.repeats * options.steps + options.profile * 4
    store = str(options.data) if options.data else ""
    try:
        bench = Bench(setting, setting.config(store, options.workers, total), device)
        warm_up = device.seconds(lambda: bench.steps(options.warm_up))
        bench.waited, bench.images, bench.expressions = 0.0, 0, 0
        spent = [device.seconds(lambda: bench.steps(options.steps)) for _ in range(options.repeats)]
    except torch.OutOfMemoryError:
        return {**asdict(setting), "failed": "out of memory"}
    images = bench.images / options.repeats
    expressions = bench.expressions / options.repeats
    flops = training_step_flops(
        bench.network, round(images / options.steps), round(expressions / options.steps)
    )
    median = statistics.median(spent)
    row = {
        **asdict(setting),
        "images_per_second": images / median,
        "images_per_second_range": [images / max(spent), images / min(spent)],
        "phrases_per_second": expressions / median,
        "step_ms": 1000 * median / options.steps,
        "data_wait_share": bench.waited / sum(spent),
        "memory_gib": device.memory_gib(),
        "step_gflop": flops / 1e9,
        "mfu": flops * options.steps / median / peak,
        "warm_up_seconds": warm_up,
    }
    if options.profile:
        print(f"\n{setting}\n{operators(bench, options.profile_rows)}", flush=True)
        parts = part_times(bench.learner, next(bench.batches), device.seconds)
        print(part_table(parts, peak), flush=True)
        row["parts"] = [asdict(part) for part in parts]
    return row


def operators(bench: Bench, rows: int) -> str:
    """The operators of three updates by the device's own time in each, as a table."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * bench.device.is_gpu
    with profile(activities=activities) as recorded:
        bench.device.seconds(lambda: bench.steps(3))
    order = "self_device_time_total" if bench.device.is_gpu else "self_cpu_time_total"
    return str(recorded.key_averages().table(sort_by=order, row_limit=rows))


# -- the command ------------------------------------------------------------------------------


def settings(options: argparse.Namespace) -> list[Setting]:
    """All combinations of what the options name."""
    grid = itertools.product(
        options.preset,
        options.size or [None],
        options.batch,
        options.phrases,
        options.precision,
        options.layout,
        [name == "on" for name in options.compile],
        options.ema,
    )
    return [
        Setting(preset, size or preset_config(preset).image_size, *rest)
        for preset, size, *rest in grid
    ]


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as Markdown."""
    names = [*Setting.__dataclass_fields__]
    numbers = ["images/s", "range", "phrases/s", "step ms", "data wait", "GiB", "MFU"]
    lines = [
        f"| {' | '.join([*names, *numbers])} |",
        "|" + "---|" * len(names) + "--:|" * len(numbers),
    ]
    for row in rows:
        cells = [str(row[name]) for name in names]
        if "failed" in row:
            cells += [row["failed"], *[""] * (len(numbers) - 1)]
        else:
            low, high = row["images_per_second_range"]
            cells += [
                *(f"{row['images_per_second']:.1f}", f"{low:.1f} to {high:.1f}"),
                *(f"{row['phrases_per_second']:.1f}", f"{row['step_ms']:.1f}"),
                *(f"{row['data_wait_share']:.1%}", f"{row['memory_gib']:.1f}"),
                f"{row['mfu']:.1%}",
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _options(device: Device) -> argparse.Namespace:
    gpu = device.is_gpu
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--preset", nargs="+", default=["segvlm-rn101" if gpu else "segvlm-lite"])
    parser.add_argument("--size", nargs="+", type=int, help="default: 416 on a GPU, else 224")
    parser.add_argument("--batch", nargs="+", type=int, default=[16, 32, 64] if gpu else [4])
    parser.add_argument("--phrases", nargs="+", type=int, default=[1], help="of each image")
    parser.add_argument("--precision", nargs="+", choices=_DTYPES, default=["bf16"])
    layouts = ("channels_last", "contiguous")
    parser.add_argument("--layout", nargs="+", choices=layouts, default=["channels_last"])
    parser.add_argument("--compile", nargs="+", choices=("off", "on"), default=["off"])
    parser.add_argument("--ema", nargs="+", type=float, default=[0.0], help="decay; 0 is off")
    parser.add_argument("--data", type=Path, help="a phrase store; its split train is loaded")
    parser.add_argument("--workers", type=int, default=0, help="of the loader, with --data")
    parser.add_argument("--steps", type=int, default=20 if gpu else 3, help="of a repeat")
    parser.add_argument("--repeats", type=int, default=5 if gpu else 3)
    parser.add_argument("--warm-up", type=int, default=10 if gpu else 1, help="steps")
    parser.add_argument("--profile", action="store_true", help="operators and parts of each row")
    parser.add_argument("--profile-rows", type=int, default=20)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.size is None:
        options.size = [416 if gpu else 224]
    return options


def main() -> None:
    device = Device()
    options = _options(device)
    peaks = {precision: device.matrix_peak(precision) for precision in options.precision}
    print(f"{device.name}, torch {torch.__version__}, Python {platform.python_version()}")
    for precision, peak in peaks.items():
        print(f"matrix peak measured, {precision}: {peak / 1e12:.3g} TFLOP/s")
    rows = []
    for setting in settings(options):
        rows.append(measure(setting, device, peaks[setting.precision], options))
        print(f"measured {len(rows)}: {setting}", file=sys.stderr, flush=True)
    print(f"\n{table(rows)}")
    if options.json:
        content = {
            "device": device.name,
            "torch": torch.__version__,
            "matrix_peak_tflops": {name: peak / 1e12 for name, peak in peaks.items()},
            "data": "resident" if options.data is None else f"loader, {options.workers} workers",
            "steps": options.steps,
            "repeats": options.repeats,
            "rows": rows,
        }
        options.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _processor() -> str:
    """The processor's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
