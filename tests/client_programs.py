"""Runs other people's clients, each in the environment that `make test` made for it.

`tests/clients/NAME.txt` lists what is in `.venv-clients/NAME`; the programs in `tests/clients/` use
those clients as their own users would, and know nothing of this repository.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[1]
PROGRAMS = _ROOT / "tests" / "clients"


def client_environment(name: str) -> Path:
    """The directory of the environment. Skips the test where it was not made."""
    environment = _ROOT / ".venv-clients" / name
    if not (environment / ".installed").is_file():
        pytest.skip(f"the environment .venv-clients/{name} is not here; `make test` makes it")
    return environment


def run_client(environment: str, program: str, *arguments: str, timeout: float = 120) -> str:
    """What `tests/clients/PROGRAM` printed. Fails the test, with all its output, if it failed."""
    python = client_environment(environment) / "bin" / "python"
    finished = subprocess.run(
        [python, PROGRAMS / program, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert finished.returncode == 0, f"{program}:\n{finished.stdout}\n{finished.stderr}"
    return finished.stdout
