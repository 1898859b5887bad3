"""Every target with some hundred inputs, always the same; CONTRIBUTING.md says how to try more."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.errors import InternalError
from tests.fuzz.bounds import MOST_MEMORY, Finding, PeakMemory, check
from tests.fuzz.mutation import Mutator, mend_png
from tests.fuzz.seeds import images
from tests.fuzz.targets import TARGETS, Run, Target

EXAMPLES = {"service": 400}
RANDOMS = st.randoms(use_true_random=False)


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    """A function that starts a target, for all tests of this file."""
    started: dict[str, Run] = {}
    with ExitStack() as stack:

        def start(name: str) -> Run:
            if name not in started:
                started[name] = stack.enter_context(TARGETS[name].running())
            return started[name]

        yield start


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_valid(name: str, running: Any) -> None:
    """Else the mutations of a seed would never come past what is wrong with it."""
    for seed in TARGETS[name].seeds():
        assert check(running(name), seed, PeakMemory()), seed[:300]


@pytest.mark.parametrize("name", TARGETS)
def test_target(name: str, running: Any) -> None:
    target: Target = TARGETS[name]
    run, memory = running(name), PeakMemory()
    mutator = Mutator(target.seeds(), target.tokens())
    valid = 0

    @settings(
        max_examples=EXAMPLES.get(name, 1000),
        derandomize=True,
        database=None,
        deadline=None,  # `check` has its own
        suppress_health_check=list(HealthCheck),
    )
    @given(RANDOMS)
    def holds(random: Random) -> None:
        nonlocal valid
        valid += check(run, mutator.mutate(random), memory)

    holds()
    assert valid > 20, "mutated so much that nothing gets through any more"


def test_mutations_are_of_the_seed_alone() -> None:
    mutator = Mutator([b"GET / 12", b"POST /"], [b"token"])
    once, again = ([mutator.mutate(Random(i)) for i in range(300)] for _ in range(2))
    assert once == again
    assert len(set(once)) > 100


def test_a_png_with_true_checksums_is_believed() -> None:
    png = bytearray(next(data for data in images() if data.startswith(b"\x89PNG")))
    whole = bytes(png)
    png[16:20] = bytes(4)
    damaged = bytes(png)
    mend_png(png)
    assert damaged != bytes(png) != whole
    png[16:20] = whole[16:20]
    mend_png(png)
    assert bytes(png) == whole


class TestBounds:
    def test_an_error_below_500_is_an_answer(self) -> None:
        assert check(lambda data: None, b"", PeakMemory())
        run = TARGETS["image"].running
        with run() as decode:
            assert not check(decode, b"no image", PeakMemory())

    def test_a_fault_of_ours_is_a_finding(self) -> None:
        def fail(data: bytes) -> None:
            raise InternalError

        with pytest.raises(Finding, match="status 500"):
            check(fail, b"", PeakMemory())

    def test_anything_else_is_one_too(self) -> None:
        with pytest.raises(ZeroDivisionError):
            check(lambda data: 1 // len(data), b"", PeakMemory())  # type: ignore[arg-type]

    @pytest.mark.skipif(sys.platform != "linux", reason="/proc tells a process's peak memory")
    def test_much_memory_is_a_finding(self) -> None:
        with pytest.raises(Finding, match="memory rose"):
            check(lambda data: bytearray(b"1") * (MOST_MEMORY + 2**26), b"", PeakMemory())  # type: ignore[arg-type,return-value]


def test_the_command_saves_what_it_finds(repo_root: Path, tmp_path: Path) -> None:
    """And runs it again by its file's name. A target that always fails is put in its way."""
    program = (
        "import sys, tests.fuzz.targets as t\n"
        "t.decode_image.__code__ = (lambda data: 1 // 0).__code__\n"
        "from tests.fuzz.__main__ import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program, *arguments],
            cwd=repo_root, capture_output=True, text=True, check=False,
        )  # fmt: skip

    done = run("image", "--seconds", "1", "--out", str(tmp_path))
    assert done.returncode == 1, done.stderr
    assert "ZeroDivisionError" in done.stdout
    (saved,) = tmp_path.glob("image-ZeroDivisionError-*")
    assert str(saved) in done.stdout
    again = run("image", "--again", str(saved))
    assert again.returncode == 1
    assert "ZeroDivisionError" in again.stdout
