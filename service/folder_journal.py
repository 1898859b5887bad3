"""What a run over many files has done so far: a line for each file, so that a killed run goes on.

The journal lies beside the results. Its first line says what was asked, and of which folder; one
for something else is refused, and so is the answer of another model. A line that was cut short by
a kill is dropped. One process writes it at a time.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from service.client_results import MalformedAnswer, parse_answer


class Journal:
    """Look at `done`, `note` what comes, `close`; lines reach the file as they are noted."""

    def __init__(self, path: Path, asked: Mapping[str, Any]) -> None:
        """Raises ValueError if the journal there is in use, damaged or of another question."""
        self.path = path
        self.done: dict[str, Any] = {}
        """Answers, as `POST /segment` gives them, by file name."""
        self._model: Any = None
        self._file: TextIO = path.open("a+", encoding="utf-8")
        try:
            _lock(self._file, path)
            if not self._read(dict(asked)):
                self._write({"asked": dict(asked)})
        except BaseException:
            self._file.close()
            raise

    def _read(self, asked: dict[str, Any]) -> bool:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                document = json.loads(line)
                if number > 1:
                    name, answer = document["file"], document["answer"]
                    parse_answer(answer)
                else:
                    before = document["asked"]
            except (ValueError, LookupError, TypeError, MalformedAnswer) as error:
                raise ValueError(
                    f"{self.path}, line {number} is damaged ({error}); delete the line, and its "
                    "file is done again"
                ) from error
            if number > 1:
                self._keep(name, answer)
            elif before != asked:
                raise ValueError(
                    f"{self.path} is the journal of another question ({before}); delete it, or "
                    "name another file with --out"
                )
        return bool(whole)

    def _keep(self, name: str, answer: Any) -> None:
        if self._model not in (None, answer["model"]):
            raise ValueError(
                f"{self.path} holds answers of {self._model}, now {answer['model']} answers; "
                "delete it, or name another file with --out"
            )
        self._model = answer["model"]
        self.done[name] = answer

    def note(self, name: str, answer: Any) -> None:
        """One file is done. Raises ValueError if another model answered than before."""
        self._keep(name, answer)
        self._write({"file": name, "answer": answer})

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self, finished: bool) -> None:
        """A finished run needs it no more."""
        if finished:
            self.path.unlink()
        self._file.close()


def _lock(file: TextIO, path: Path) -> None:
    """While the file is open; the system lets go of it when the process ends, however it ends."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ValueError(f"another run is writing {path}; wait for it, or stop it") from error
