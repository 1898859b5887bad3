"""The same targets with atheris, which mutates what reached new code before; ends the process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

from tests.fuzz.bounds import LONGEST, PeakMemory

_WHOLE_PROCESS = 1024  # MiB; `check` measures what one input adds


def fuzz(name: str, seconds: float, seed: int, out: Path) -> NoReturn:
    """Keeps inputs that reached new code in `out`/NAME-corpus, for the next time."""
    try:
        import atheris
    except ImportError:
        sys.exit("atheris is not installed: pip install atheris, on Linux or macOS")
    with atheris.instrument_imports(include=["service", "python_multipart", "PIL"]):
        from tests.fuzz.targets import TARGETS

    from tests.fuzz.bounds import check

    if name not in TARGETS:
        sys.exit(f"atheris takes one target at a time: {', '.join(TARGETS)}")
    target = TARGETS[name]
    corpus = out / f"{name}-corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, data in enumerate(target.seeds()):
        (corpus / f"seed-{number}").write_bytes(data)
    words = out / f"{name}-words"
    words.write_text("".join(f'"{_escape(token)}"\n' for token in target.tokens()))
    arguments = [
        sys.argv[0],
        f"-max_total_time={int(seconds)}",
        f"-seed={seed + 1}",  # 0 would be a seed of its own choice
        f"-artifact_prefix={out}/{name}-",
        f"-timeout={int(LONGEST)}",
        f"-rss_limit_mb={_WHOLE_PROCESS}",
        f"-dict={words}",
        str(corpus),
    ]
    with target.running() as run:
        memory = PeakMemory()

        def one_input(data: bytes) -> None:
            check(run, data, memory)

        atheris.Setup(arguments, one_input)
        atheris.Fuzz()
    raise AssertionError("atheris ends the process")


def _escape(token: bytes) -> str:
    """In the form of libFuzzer's dictionaries."""
    return "".join(f"\\x{byte:02x}" for byte in token[:64])
