"""What can end a run from outside, each as one line that says what to do."""

from __future__ import annotations

_LOST_WORKER = "DataLoader worker"
_LOST_PROCESS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL")


class TrainingError(RuntimeError):
    """A run cannot go on for a reason outside of its configuration."""


def explained(error: RuntimeError) -> RuntimeError:
    """A known failure of memory, a data worker or another process, in words; others unchanged."""
    import torch
    import torch.distributed as dist

    text = str(error)
    if isinstance(error, torch.OutOfMemoryError):
        return TrainingError(
            f"the GPU's memory is full ({first_line(error)}); lower data.images_per_batch, raise "
            "optim.accumulate, or use more processes, and start again in another run.out"
        )
    if _LOST_WORKER in text:
        return TrainingError(
            f"a data worker died ({first_line(error)}); it may have run out of memory: lower "
            "data.workers and give the same command again, it goes on from the last checkpoint"
        )
    lost = dist.is_available() and isinstance(error, dist.DistError)
    if lost or any(part in text for part in _LOST_PROCESS):
        return TrainingError(
            f"another process of the run is gone ({first_line(error)}); its own message stands "
            "above. Give the same command again, it goes on from the last checkpoint"
        )
    return error


def first_line(error: BaseException) -> str:
    """The message without the traceback that some libraries append."""
    return (str(error).splitlines() or [type(error).__name__])[0]
