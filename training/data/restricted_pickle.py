"""Pickles of plain data, read without running anything.

An ordinary unpickler imports and calls whatever a file names. The files of RefCOCO hold lists,
dicts, numbers and strings, which a pickle builds without naming anything; so here every name is
refused, and a file that needs one cannot do harm.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, NoReturn


def load_plain_pickle(path: Path) -> Any:
    """The lists, tuples, dicts, numbers, strings, bytes, booleans and None of a pickle.

    Any protocol. The 8-bit strings of Python 2 are read as UTF-8, or all of them as Latin-1 where
    that fails.

    Raises ValueError for a missing or broken file, and for one that names a class or function.
    """
    try:
        try:
            return _load(path, "utf-8")
        except UnicodeDecodeError:
            return _load(path, "latin-1")
    except FileNotFoundError:
        raise ValueError(f"no file at {path}") from None
    except _NameRefused as refused:
        raise ValueError(
            f"{path} names {refused}; a pickle of plain data names nothing, and loading this one "
            "could run its code: fetch it again from the data set's own site"
        ) from None
    except Exception as error:  # a broken pickle raises nearly anything, KeyError to MemoryError
        raise ValueError(f"{path} is no readable pickle ({error!r}); fetch it again") from error


class _NameRefused(Exception):
    """A pickle names a class, a function, or an object kept elsewhere."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> NoReturn:
        raise _NameRefused(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise _NameRefused(f"the outside object {pid!r}")


def _load(path: Path, encoding: str) -> Any:
    with path.open("rb") as file:
        return _PlainUnpickler(file, encoding=encoding).load()
