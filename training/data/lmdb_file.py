"""Opening an LMDB file so that neither damage, nor a fork, nor a second writer can hurt."""

from __future__ import annotations

import fcntl
import os
import threading
import weakref
from pathlib import Path

import lmdb

REMAKE = "make one with `python -m training prepare`"


class StoreError(ValueError):
    """The store cannot be read or written as asked; the message names the remedy."""


FileKey = tuple[int, int]  # device, inode

# LMDB forbids to open a file twice in a process and to use an environment across a fork, so the
# readers of a process share environments, and a forked child drops those it inherits. Keyed by
# the file itself: a path may come to hold another file. Weak: the last reader closes the file.
_environments: weakref.WeakValueDictionary[FileKey, lmdb.Environment] = (
    weakref.WeakValueDictionary()
)
_lock = threading.Lock()


def shared_environment(path: Path) -> tuple[FileKey, lmdb.Environment]:
    """This process's read-only environment of a file.

    Raises:
        StoreError: no file there, or it is foreign or truncated.
    """
    if not path.exists():
        raise StoreError(f"no phrase store at {path}; {REMAKE}")
    file = _file_key(path)
    with _lock:
        environment = _environments.get(file)
        if environment is None:
            check_file(path)
            environment = _open_read_only(path)
            _environments[file] = environment
    return file, environment


def is_read_here(path: Path) -> bool:
    """Whether this process holds the file open for reading."""
    return _file_key(path) in _environments


def _drop_inherited() -> None:
    """In a forked child: closing leaves the parent's own mapping of the file as it is."""
    global _lock
    _lock = threading.Lock()  # another thread of the parent may have held it
    for environment in list(_environments.values()):
        environment.close()
    _environments.clear()


os.register_at_fork(after_in_child=_drop_inherited)


def _file_key(path: Path) -> FileKey:
    status = path.stat()
    return status.st_dev, status.st_ino


def check_file(path: Path) -> None:
    """Refuse what LMDB would read badly: a foreign file, or one whose end is missing.

    Reading a page behind the end of a mapped file kills the process with SIGBUS, so the size is
    compared before anything is read.

    Raises:
        StoreError: with the remedy.
    """
    if path.is_dir():
        raise StoreError(f"{path} is a folder, a phrase store is one file; {REMAKE}")
    try:
        environment = _open_read_only(path)
    except lmdb.Error as error:
        raise StoreError(f"{path} is no phrase store or is damaged ({error}); {REMAKE}") from error
    try:
        size, wanted = path.stat().st_size, used_bytes(environment)
    finally:
        environment.close()
    if size < wanted:
        raise StoreError(
            f"{path} is truncated ({size} of {wanted} bytes); copy it again, or delete it and "
            f"{REMAKE}"
        )


def used_bytes(environment: lmdb.Environment) -> int:
    """The size that the environment's file must at least have."""
    return int((environment.info()["last_pgno"] + 1) * environment.stat()["psize"])


def _open_read_only(path: Path) -> lmdb.Environment:
    return lmdb.open(str(path), subdir=False, readonly=True, lock=False, readahead=False)


def lock_for_writing(path: Path) -> int:
    """Open (or make) the file and lock it against other writers; the descriptor holds the lock."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StoreError(f"{path} cannot be written ({error}); choose another path") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise StoreError(f"another process is writing {path}; wait until it ends") from None
    return descriptor
