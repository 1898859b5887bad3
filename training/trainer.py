"""The training loop: agree, learn, log, validate, save. A run that was killed goes on.

The data of a step is a pure function of (seed, step), and so is its dropout; with the weights and
the optimiser's state in a checkpoint, a resumed run makes the weights of one that nothing
interrupted, bit for bit on the same machine and number of processes.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader

from model.segvlm import SegVLM
from model.tokenizer import Tokenizer

from .config import TrainConfig
from .data.dataset import Batch, TrainingBatches, build_order
from .data.lmdb_store import PhraseStore
from .distributed import Processes
from .evaluate import score_images
from .learner import Faults, Learner, Update
from .optimisation import Schedule
from .outcomes import report_of
from .predictors import TorchPredictor
from .run_files import RunFiles, refuse_other_config
from .run_log import RunLog
from .run_meter import Meter
from .run_pictures import answer_sheet, save_sheet
from .versions import versions

Step = tuple[Batch, ...]
"""The micro-batches of one update."""

_PATIENCE = 5.0  # seconds within which signals to stop count as one
_GRACE = 30  # seconds that a worker lives after one; what `torchrun` grants its processes too


class _Agreed(NamedTuple):
    """What all processes know before an update: the same in each."""

    phrases: int
    stop: bool
    broken_losses: int
    broken_gradients: int


class Trainer:
    """One run, in one process or as one of several.

    Raises:
        ValueError: if the split has no expressions, or the batch cannot be shared out.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: SegVLM,
        tokenizer: Tokenizer,
        store: PhraseStore,
        processes: Processes,
    ) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.store, self.processes = store, processes
        data, optim = config.data, config.optim
        self.order = build_order(store, data, config.run.seed)
        self.schedule = Schedule.of(optim, self.order.units_per_epoch, data.images_per_batch)
        self.batches = TrainingBatches(
            store,
            tokenizer,
            data,
            image_size=model.config.image_size,
            word_length=model.config.word_length,
            steps=self.schedule.steps,
            seed=config.run.seed,
            accumulate=optim.accumulate,
            rank=processes.rank,
            world=processes.world,
            objects=config.objects.enabled,
            names=config.objects.vocabulary_weight > 0,
        )
        names = len(self.batches.class_numbers)
        self.learner = Learner(config, model, self.schedule, processes, names)
        self.files = RunFiles(Path(config.run.out), config.run.keep)
        self.meter = Meter(processes)
        self.step = 0
        self.best = -1.0
        self.asked_to_stop: float | None = None  # when, on the monotonic clock

    def run(self) -> None:
        """Train to the end, or until SIGTERM or SIGINT, after which the same call goes on.

        Raises:
            ValueError: if the directory holds a run with other settings, or one that is running.
            FloatingPointError: if a loss is not finite; its batch is saved beside the run.
            TrainingError: if a checkpoint cannot be written.
        """
        lock = self.files.locked() if self.processes.is_main else nullcontext()
        with lock, self._signals(), self._opened() as log:
            started, first = time.perf_counter(), self.step
            for batches in self.meter.waiting(self._steps()):
                agreed = self._agree(batches)
                if agreed.stop:
                    break
                update = self.learner.update(self.step, batches, agreed.phrases)
                self.step += 1
                self._log(log, update, agreed.phrases)
                self._validate_and_save(log)
            else:
                self._finish(time.perf_counter() - started, self.step - first)
            self._leave(log)

    def _steps(self) -> Iterator[Step]:
        """The micro-batches of every update from here on."""
        accumulate, data = self.config.optim.accumulate, self.config.data
        loader = DataLoader(
            self.batches,
            batch_size=None,
            sampler=range(self.step * accumulate, len(self.batches)),
            num_workers=data.workers,
            pin_memory=self.processes.device.type == "cuda",
            generator=torch.Generator(),  # of its own: the global one belongs to dropout
            worker_init_fn=outlive_a_stop,
        )
        part: list[Batch] = []
        for batch in loader:
            part.append(batch)
            if len(part) == accumulate:
                yield tuple(part)
                part = []

    def _agree(self, batches: Sequence[Batch]) -> _Agreed:
        """Count the phrases of all processes, and stop all where one was asked to.

        Raises:
            FloatingPointError: in all processes, if the update before was broken in one.
        """
        faults = self.learner.faults()
        phrases = sum(len(batch.tokens) for batch in batches)
        stop = self.asked_to_stop is not None
        message = [phrases, stop, faults.loss is not None, faults.gradients]
        agreed = _Agreed(*self.processes.sum(torch.tensor(message, dtype=torch.int64)).tolist())
        self._refuse_broken(agreed, faults)
        return agreed

    def _refuse_broken(self, agreed: _Agreed, faults: Faults) -> None:
        if not agreed.broken_losses and not agreed.broken_gradients:
            return
        what, guilty = "the gradient", faults.batches
        if agreed.broken_losses:
            what, guilty = "the loss", tuple(each for each in (faults.loss,) if each is not None)
        place = self.files.save_broken(guilty, self.processes.rank)
        raise FloatingPointError(
            f"{what} of step {self.step} is not finite; the batch that made it is in {place}. "
            "Start again in another run.out with a lower optim.lr, with optim.clip_norm, or with "
            "optim.precision=fp32"
        )

    def _validate_and_save(self, log: RunLog | None) -> None:
        run, last = self.config.run, self.step == self.schedule.steps
        validates = last or self.step % run.validate_every == 0
        saves = last or self.step % run.save_every == 0
        if validates or saves:
            self._agree(())  # nothing of a step that went wrong may be kept
        if validates:
            self._validate(log)
        if saves and self.processes.is_main:
            self.files.save_state(self._state())

    def _validate(self, log: RunLog | None) -> None:
        """Score all validation phrases, the images shared out among the processes."""
        run, split = self.config.run, self.config.data.val_split
        model, device = self.learner.answering, self.processes.device
        predictor = TorchPredictor(model, self.tokenizer, device)
        ids = self.store.image_ids(split)[self.processes.rank :: self.processes.world]
        outcomes = score_images(
            predictor,
            self.store,
            split,
            run.threshold,
            probes=False,
            image_ids=ids,
            progress=False,
        )
        parts = self.processes.gather(outcomes)
        if log is not None:
            report = report_of([each for part in parts for each in part], split, run.threshold)
            sheet = answer_sheet(predictor, self.store, split, run.threshold)
            save_sheet(sheet, self.files.out / "samples" / f"{self.step:08d}.png")
            log.validation(self.step, report.to_dict(), sheet)
            if report.mean_iou > self.best:
                self.best = report.mean_iou
                self.files.save_weights(model, "best")
        self.meter.restart()

    @property
    def epoch(self) -> float:
        """Passes over the data so far."""
        return self.step * self.config.data.images_per_batch / self.order.units_per_epoch

    def _log(self, log: RunLog | None, update: Update, phrases: int) -> None:
        self.meter.count(update, phrases)
        if self.step % self.config.run.log_every == 0:
            row = self.meter.row(update, self.learner)
            if log is not None:
                log.train(self.step, self.schedule.steps, {"epoch": self.epoch} | row)

    def _state(self) -> dict[str, Any]:
        """Everything that the next step depends on; data and dropout follow from seed and step."""
        return {
            "config": self.config.to_dict(),
            "step": self.step,
            "epoch": self.epoch,
            "turn": self.step * self.config.data.images_per_batch,
            "seed": self.config.run.seed,
            "processes": self.processes.world,
            "learning_rate_factor": self.schedule.factor(self.step),
            "best": self.best,
            "versions": versions(),
            **self.learner.state(),
        }

    @contextmanager
    def _opened(self) -> Iterator[RunLog | None]:
        """Start afresh, or go on from the newest state; the log is the main process's alone."""
        self._begin_or_go_on()
        if not self.processes.is_main:
            yield None
            return
        log = RunLog(self.files.out, self.step)
        try:
            yield log
        finally:
            log.close()

    def _begin_or_go_on(self) -> None:
        settings = self.config.to_dict()
        state = self._newest_state()
        if state is not None:
            refuse_other_config(state["config"], settings, self.files.out)
            self.learner.load_state(state)
            self.step, self.best = state["step"], state["best"]
        if not self.processes.is_main:
            return
        print(self.order.describe(), flush=True)
        if state is None:
            self.files.write_config(settings)
        else:
            print(f"resuming {self.files.out} at step {self.step}", flush=True)
            if state["processes"] != self.processes.world:
                print(
                    f"it was on {state['processes']} processes and is now on "
                    f"{self.processes.world}: the same data, another dropout",
                    flush=True,
                )

    def _newest_state(self) -> dict[str, Any] | None:
        """The newest state that the main process can read, in every process."""
        state = self.files.newest_state() if self.processes.is_main else None
        step = self.processes.share(None if state is None else int(state["step"]))
        return state if state is not None or step is None else self.files.state_of(step)

    def _finish(self, seconds: float, steps: int) -> None:
        """What a run leaves behind when it has ended; nothing new where it had already."""
        if self.processes.is_main and (steps or not self.files.ended):
            self.files.save_weights(self.learner.answering, "last")
            self.files.write_end(
                {
                    "finished": True,
                    "step": self.step,
                    "best_mean_iou": self.best,
                    "processes": self.processes.world,
                    "device": self.meter.device_name,
                    "seconds_since_start_or_resume": seconds,
                    "steps_since_start_or_resume": steps,
                    "versions": versions(),
                }
            )

    def _leave(self, log: RunLog | None) -> None:
        if log is None:
            return
        ended = "done"
        if self.step < self.schedule.steps:
            self.files.save_state(self._state())
            ended = "stopped, give the same command again to go on"
        print(f"{self.files.out}: {ended} at step {self.step}, best {self.best:.4f}", flush=True)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM or SIGINT asks for a stop; another one, seconds later, is as deadly as ever.

        Not at once: a scheduler and `torchrun` may both pass on the same signal.
        """
        before: dict[int, Any] = {}

        def ask_to_stop(number: int, frame: FrameType | None) -> None:
            now = time.monotonic()
            if self.asked_to_stop is None:
                self.asked_to_stop = now
            elif now > self.asked_to_stop + _PATIENCE:
                signal.signal(number, before[number])
                os.kill(os.getpid(), number)

        for number in map(int, (signal.SIGTERM, signal.SIGINT)):
            before[number] = signal.signal(number, ask_to_stop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def outlive_a_stop(worker: int) -> None:
    """Let a data worker live until its trainer has ended the step in which it was asked to stop.

    `torchrun`, terminals and schedulers signal whole groups of processes; a worker that died of it
    would take the run with it. A loader ends its workers without signals.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(_GRACE))
