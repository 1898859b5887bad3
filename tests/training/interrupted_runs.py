"""Runs that are interrupted and resumed, each in processes forked from this one.

    python interrupted_runs.py CONFIG FOLDER

Runs of one process and of two. Python and torch start once instead of once for every run. Every
run is `python -m training train` in FOLDER/<name>; the last line printed is JSON: of each run and
start its processes' exit statuses (negative: the signal that ended them) and what each said.
FOLDER/gradients<n>.pt is what one and two processes learn from the same batches.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from training import setup
from training.__main__ import main
from training.config import load_config
from training.data.dataset import Batch, TrainingBatches
from training.distributed import join
from training.learner import Learner
from training.run_files import RunFiles

Interruption = Callable[[int], None]
"""What happens in the process of this rank before its run begins."""


def in_step(number: int, of_rank: int, act: Callable[[], None]) -> Interruption:
    """Do `act` in the middle of an update: the weights have moved, nothing else has."""

    def arrange(rank: int) -> None:
        update = Learner.update

        def interrupted(self: Learner, step: int, *rest: Any) -> Any:
            result = update(self, step, *rest)
            if step == number and rank == of_rank:
                act()
            return result

        Learner.update = interrupted  # type: ignore[method-assign]

    return arrange


def in_checkpoint(step: int) -> Interruption:
    """Be killed with half a checkpoint written."""

    def arrange(rank: int) -> None:
        save = torch.save

        def interrupted(state: Any, file: Any) -> None:
            if state["step"] == step:
                file.write(b"half a checkpoint")
                file.flush()
                kill()
            save(state, file)

        torch.save = interrupted  # type: ignore[assignment]

    return arrange


def without_targets(step: int, of_rank: int) -> Interruption:
    """A batch of one process that makes a loss which is not a number."""

    def arrange(rank: int) -> None:
        get = TrainingBatches.__getitem__

        def spoiled(self: TrainingBatches, item: int) -> Batch:
            batch = get(self, item)
            if (item, rank) == (step, of_rank):
                batch.targets.fill_(float("nan"))
            return batch

        TrainingBatches.__getitem__ = spoiled  # type: ignore[method-assign]

    return arrange


def before_the_end(rank: int) -> None:
    """Be killed when all is done but run.json."""

    def interrupted(self: RunFiles, summary: Any) -> None:
        kill()

    RunFiles.write_end = interrupted  # type: ignore[method-assign]


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def ask_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def ask_the_group_to_stop() -> None:
    """As `torchrun` and terminals do: data workers are in the group."""
    os.killpg(0, signal.SIGTERM)


def undisturbed(rank: int) -> None:
    """Nothing happens."""


class Runs:
    """Starts runs and remembers how they ended."""

    def __init__(self, config: str, folder: Path) -> None:
        self.config, self.folder = config, folder
        self.ended: dict[str, list[dict[str, Any]]] = {}

    def start(
        self, name: str, *overrides: str, world: int = 1, interruption: Interruption = undisturbed
    ) -> None:
        """Run `name` until it ends or is interrupted."""

        def train(rank: int) -> int:
            interruption(rank)
            run = f"run.out={self.folder / name}"
            return main(["train", "--config", self.config, run, *overrides])

        self.fork(name, world, train)

    def fork(self, name: str, world: int, act: Callable[[int], int]) -> None:
        """`act` in each of `world` processes that find one another as under `torchrun`."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = []
        for rank in range(world):
            child = os.fork()
            if child == 0:
                place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world}
                place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                os.environ.update({key: str(value) for key, value in place.items()})
                self._act(self.folder / f"{name}{rank}.txt", rank, act)
            children.append(child)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        said = [(self.folder / f"{name}{rank}.txt").read_text("utf-8") for rank in range(world)]
        self.ended.setdefault(name, []).append({"statuses": statuses, "said": said})

    def _act(self, log: Path, rank: int, act: Callable[[int], int]) -> None:
        status = 99
        try:
            os.setsid()
            said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(said, 1)
            os.dup2(said, 2)
            status = act(rank)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


def interrupt_and_resume(runs: Runs) -> None:
    """One process."""
    runs.start("whole", "run.save_every=100")
    runs.start("killed", "run.save_every=2", "data.workers=1", interruption=in_step(3, 0, kill))
    runs.start("killed", "run.save_every=2")
    runs.start("half_written", interruption=in_checkpoint(2))
    runs.start("half_written", "run.save_every=4", interruption=before_the_end)
    runs.start("half_written")
    group = in_step(2, 0, ask_the_group_to_stop)
    runs.start("stopped", "run.save_every=100", "data.workers=2", interruption=group)
    runs.start("stopped", "run.save_every=100")


def interrupt_and_resume_two(runs: Runs) -> None:
    """Two processes, of which the second is interrupted."""
    batch = "data.images_per_batch=4"
    runs.start("whole_of_two", batch, "run.save_every=100", world=2)
    lost = in_step(3, 1, kill)
    runs.start("killed_of_two", batch, "run.save_every=2", world=2, interruption=lost)
    runs.start("killed_of_two", batch, "run.save_every=2", world=2)
    stop = in_step(2, 1, ask_to_stop)
    runs.start("stopped_of_two", batch, "run.save_every=100", world=2, interruption=stop)
    runs.start("stopped_of_two", batch, "run.save_every=100", world=2)
    runs.start("broken_of_two", batch, world=2, interruption=without_targets(2, 1))


def learn_in_one_and_in_two(runs: Runs) -> None:
    """Losses, gradients and statistics of three global batches, their parts of unequal size.

    In float64, where the order of a sum does not show, and without dropout, which is each
    process's own.
    """
    overrides = ["data.images_per_batch=4", "data.phrases_per_image=5"]
    overrides += [f"model.overrides.{name}=0.0" for name in ("dropout", "text_dropout")]
    build = setup.build_model
    config = load_config(Path(runs.config), overrides)

    def learn(rank: int) -> int:
        setup.build_model = lambda section: build(section).double()
        processes = join()
        trainer = setup.build_trainer(config, processes)
        learner, counts, losses = trainer.learner, [], []
        for step in range(3):
            batch = trainer.batches[step]
            counts.append(processes.gather(len(batch.tokens)))
            update = learner.update(step, [batch], sum(counts[-1]))
            losses.append(processes.sum(torch.stack(list(update.terms))))
        if processes.is_main:
            named = [each for each in learner.model.named_parameters() if each[1].requires_grad]
            found = {
                "counts": counts,
                "losses": torch.stack(losses),
                "gradients": {name: each.grad for name, each in named},
                "weights": learner.model.state_dict(),
                "average": learner.answering.state_dict(),
            }
            torch.save(found, runs.folder / f"gradients{processes.world}.pt")
        processes.leave()
        return 0

    for world in (1, 2):
        runs.fork(f"learn_in_{world}", world, learn)


if __name__ == "__main__":
    all_runs = Runs(sys.argv[1], Path(sys.argv[2]))
    interrupt_and_resume(all_runs)
    learn_in_one_and_in_two(all_runs)
    interrupt_and_resume_two(all_runs)
    print(json.dumps(all_runs.ended))
