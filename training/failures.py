"""What can end a run from outside, each as one line that says what to do."""

from __future__ import annotations

import errno
import re

_WORKER_FAILED = re.compile(r"Caught \w+ in DataLoader worker process")
_LOST_WORKER = "DataLoader worker"
_LOST_PROCESS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "Timed out waiting",
    "NCCL",
)
_GO_ON = "give the same command again, it goes on from the last checkpoint"


class TrainingError(RuntimeError):
    """A run cannot go on for a reason outside of its configuration."""


def explained(error: Exception) -> Exception:
    """A known failure of disk, memory, a data worker or another process, in words; others as is."""
    text = str(error)
    if _WORKER_FAILED.search(text):
        return TrainingError(f"a data worker failed: {_last_line(text)}; mend that, and {_GO_ON}")
    if isinstance(error, OSError):
        return _about_files(error)
    if isinstance(error, RuntimeError):
        return _about_processes(error, text)
    return error


def _about_files(error: OSError) -> Exception:
    what = f"{error.strerror or first_line(error)}: {error.filename or 'no file was named'}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TrainingError(f"the disk is full ({what}); make room, and {_GO_ON}")
    return TrainingError(f"a file cannot be read or written ({what}); mend that, and {_GO_ON}")


def _about_processes(error: RuntimeError, text: str) -> Exception:
    import torch
    import torch.distributed as dist

    if isinstance(error, torch.OutOfMemoryError):
        return TrainingError(
            f"the GPU's memory is full ({first_line(error)}); lower data.images_per_batch, raise "
            "optim.accumulate, or use more processes, and start again in another run.out"
        )
    if _LOST_WORKER in text:
        return TrainingError(
            f"a data worker died ({first_line(error)}); it may have run out of memory: lower "
            f"data.workers, and {_GO_ON}"
        )
    lost = dist.is_available() and isinstance(error, dist.DistError)
    if lost or any(part in text for part in _LOST_PROCESS):
        return TrainingError(
            f"another process of the run is gone ({first_line(error)}); its own message stands "
            f"above. Mend that, and {_GO_ON}"
        )
    return error


def first_line(error: BaseException) -> str:
    """The message without the traceback that some libraries append."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _last_line(text: str) -> str:
    """Of a traceback: the exception."""
    return [line.strip() for line in text.splitlines() if line.strip()][-1]
