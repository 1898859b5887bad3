"""benchmarks.startup measures the process that it started."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

from benchmarks import startup


def test_memory_is_that_of_the_process_while_it_holds_it() -> None:
    holding = "import sys; held = bytes(0) + b'x' * 2**26; print('held', flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", holding], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        with startup.memory_of(process.pid) as samples:
            seen = threading.Event()
            while not samples:
                seen.wait(0.01)
        assert all(64 < mib < 256 for mib in samples)
        process.stdin.close()


def test_command_prints_and_writes_every_number(tmp_path: Path, repo_root: Path) -> None:
    written = tmp_path / "startup.json"
    command = [sys.executable, "-m", "benchmarks.startup", "--backend", "fake", "--rounds", "2"]
    command += ["--seconds", "1", "--workers", "2", "--width", "96", "--height", "64"]
    done = subprocess.run(
        [*command, "--json", str(written)], cwd=repo_root, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(written.read_text(encoding="utf-8"))
    assert len(result["start_seconds"]) == 2 and min(result["start_seconds"]) > 0.1
    mib = result["mib"]
    assert 20 < mib["at_rest"] <= mib["most"]
    assert mib["under_load"] <= mib["most"]
    assert set(mib["load"]["outcomes"]) == {"200"}
    for value in (mib["at_rest"], mib["under_load"], mib["most"], mib["after"]):
        assert f"{value:.0f} MiB" in done.stdout
