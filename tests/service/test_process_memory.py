"""Freed photos give their memory back although features between them stay."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import pytest

# One large photo is freed; then of a hundred blocks every second one. Prints the MiB given back.
_HOLES = """
import sys
import numpy as np
from service.process_memory import return_large_blocks

def resident():
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096 // 2**20

if sys.argv[1] == "with":
    assert return_large_blocks()
photo = np.ones(2**24, np.uint8)
del photo
blocks = [np.ones(2**20, np.uint8) for _ in range(100)]
before = resident()
del blocks[::2]
print(before - resident())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or platform.libc_ver()[0] != "glibc",
    reason="only glibc keeps freed blocks; other C libraries are left alone",
)
@pytest.mark.parametrize(("how", "least", "most"), [("with", 45, 55), ("without", -5, 5)])
def test_holes_between_blocks_that_stay(how: str, least: int, most: int, repo_root: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _HOLES, how], cwd=repo_root, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert least <= int(run.stdout) <= most
