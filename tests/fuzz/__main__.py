"""Fuzz the service for as long as you like; CONTRIBUTING.md has examples.

Exits with 1 if an input made trouble; each is saved, one for each kind of trouble, and printed.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import sys
import time
import traceback
from pathlib import Path
from random import Random

_HANGS = 120  # seconds until an input that never ends is reported and the process ends
_NEWS = 30.0  # seconds between two lines that say how far it is


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", help="image, segment, infer, stream, service or all")
    parser.add_argument("--seconds", type=float, default=60, help="for each target; default 60")
    parser.add_argument("--seed", type=int, default=0, help="another seed tries other inputs")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="for what is found")
    parser.add_argument("--again", type=Path, help="run this one input, with the whole traceback")
    parser.add_argument(
        "--engine",
        choices=("random", "atheris"),
        default="random",
        help="atheris is guided by coverage and must be installed: pip install atheris",
    )
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    if options.engine == "atheris":
        from tests.fuzz.coverage_guided import fuzz

        fuzz(options.target, options.seconds, options.seed, options.out)
    from tests.fuzz.targets import TARGETS

    names = list(TARGETS) if options.target == "all" else [options.target]
    if unknown := set(names) - set(TARGETS):
        parser.error(f"no target {unknown.pop()!r}; there are {', '.join(TARGETS)} and all")
    if options.again:
        return _run_again(names[0], options.again)
    return max([_search(name, options.seconds, options.seed, options.out) for name in names])


def _search(name: str, seconds: float, seed: int, out: Path) -> int:
    from tests.fuzz.bounds import PeakMemory, check
    from tests.fuzz.mutation import Mutator
    from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    mutator = Mutator(target.seeds(), target.tokens())
    out.mkdir(parents=True, exist_ok=True)
    current = out / f"{name}-current"
    tried = valid = 0
    slowest = 0.0
    found: set[str] = set()
    with target.running() as run:
        memory = PeakMemory()
        started = reported = time.monotonic()
        while (now := time.monotonic()) < started + seconds:
            data = mutator.mutate(Random(seed * 10**9 + tried))
            current.write_bytes(data)  # is left behind by a crash or a hang
            faulthandler.dump_traceback_later(_HANGS, exit=True)
            try:
                valid += check(run, data, memory)
            except Exception as error:
                if (kind := _kind_of(error)) not in found:
                    found.add(kind)
                    _save(out, name, f"{seed}-{tried}", data, error)
                memory = PeakMemory()
            tried += 1
            slowest = max(slowest, time.monotonic() - now)
            if now > reported + _NEWS:
                reported = now
                print(f"{name}: {tried:,} inputs, {len(found)} kinds of trouble", flush=True)
        rise = memory.rise // 2**20
    faulthandler.cancel_dump_traceback_later()
    current.unlink(missing_ok=True)
    print(
        f"{name}: {tried:,} inputs of seed {seed} in {time.monotonic() - started:.0f} s, {valid:,} "
        f"of them valid; slowest {1000 * slowest:.0f} ms, memory rose by {rise} MiB; "
        f"{len(found)} kinds of trouble"
    )
    return 1 if found else 0


def _kind_of(error: Exception) -> str:
    """Equal for what has the same cause: the exception and the last place in this repository."""
    frames = traceback.extract_tb(error.__traceback__)
    place = next((frame for frame in reversed(frames) if "/service/" in frame.filename), frames[-1])
    return f"{type(error).__name__} {place.filename}:{place.lineno} {str(error)[:20]}"


def _save(out: Path, name: str, number: str, data: bytes, error: Exception) -> None:
    path = out / f"{name}-{type(error).__name__}-{number}"
    path.write_bytes(data)
    last = traceback.format_exception_only(error)[-1].strip()[:500]
    print(
        f"{name}: {last}\n  {data[:80]!r}\n  python -m tests.fuzz {name} --again {path}", flush=True
    )


def _run_again(name: str, path: Path) -> int:
    from tests.fuzz.bounds import PeakMemory, check
    from tests.fuzz.targets import TARGETS

    with TARGETS[name].running() as run:
        try:
            valid = check(run, path.read_bytes(), PeakMemory())
        except Exception:
            traceback.print_exc(file=sys.stdout)
            return 1
    print(f"no trouble; the input is {'valid' if valid else 'refused'}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
