"""What a run over many files has done so far: a line for each file, so that a killed run goes on.

The journal lies beside the results. Its first line says what was asked; one for something else is
refused. A line that was cut short by a kill is dropped.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO


class Journal:
    """Look at `done`, `note` what comes, `close`; lines reach the file as they are noted."""

    def __init__(self, path: Path, asked: Mapping[str, Any]) -> None:
        """Raises ValueError if the journal there belongs to another question."""
        self.path = path
        self.done: dict[str, Any] = {}
        """Answers, as `POST /segment` gives them, by file name."""
        known = self._read(dict(asked)) if path.exists() else False
        self._file: TextIO = path.open("a", encoding="utf-8")
        if not known:
            self._write({"asked": dict(asked)})

    def _read(self, asked: dict[str, Any]) -> bool:
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        lines = [json.loads(line) for line in whole.splitlines()]
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        if not lines:
            return False
        if lines[0].get("asked") != asked:
            raise ValueError(
                f"{self.path} is the journal of another question ({lines[0].get('asked')}); delete "
                "it, or name another file with --out"
            )
        for line in lines[1:]:
            self.done[line["file"]] = line["answer"]
        return True

    def note(self, name: str, answer: Any) -> None:
        """One file is done."""
        self.done[name] = answer
        self._write({"file": name, "answer": answer})

    def _write(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
        self._file.flush()

    def close(self, finished: bool) -> None:
        """A finished run needs it no more."""
        self._file.close()
        if finished:
            self.path.unlink()
