"""A server as a process of its own, started for a benchmark and stopped after it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parents[1]
_PATIENCE = 600.0  # seconds until a server that does not come up counts as broken


@contextmanager
def our_service(**settings: object) -> Iterator[tuple[str, int]]:
    """`python -m service serve` on a free port; keyword arguments are settings.

    Yields the address of `POST /segment` and the process id.
    """
    environment = {f"SEGVLM_{name.upper()}": str(value) for name, value in settings.items()}
    environment.setdefault("SEGVLM_ACCESS_LOG", "false")
    command = [sys.executable, "-m", "service", "serve", "--host", "127.0.0.1", "--port", "0"]
    with _process(command, environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"ready on http://localhost:(\d+)", line)
        if not found:
            raise RuntimeError(f"the service did not start: {line!r}; its error is above")
        yield f"http://127.0.0.1:{found[1]}/segment", process.pid


@contextmanager
def other_server(
    command: Sequence[str], port: int, ready: str, environment: Mapping[str, str]
) -> Iterator[int]:
    """Any server that answers `ready` (a path) on `port` once it is up; yields its process id."""
    with _process(command, environment, stdout=subprocess.DEVNULL) as process:
        end = time.monotonic() + _PATIENCE
        while True:
            try:
                with urlopen(f"http://127.0.0.1:{port}{ready}", timeout=2):
                    break
            except (URLError, OSError) as error:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError(f"{command} did not start ({error})") from error
                time.sleep(0.2)
        yield process.pid


@contextmanager
def _process(
    command: Sequence[str], environment: Mapping[str, str], stdout: int
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=stdout,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with suppress(ProcessLookupError):  # some servers leave workers behind, and the port taken
            os.killpg(process.pid, signal.SIGKILL)


def resident_mib(pid: int) -> float:
    """Memory of a process that is in main memory now; Linux only."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} tells no memory; this needs Linux")


def processor_seconds(pid: int) -> float:
    """User and system time of a process so far, its ended children not counted; Linux only."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
