"""Keys, files of keys, and a service that asks for them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from service.api_keys import make_key


@dataclass
class Keys:
    """A file with a key for each name; `key[name]` is what its owner holds."""

    path: Path
    key: dict[str, str]

    def write(self, text: str) -> None:
        """Replace the file, as an editor that was asked to save does."""
        draft = self.path.with_suffix(".new")
        draft.write_text(text, encoding="utf-8")
        os.replace(draft, self.path)


@pytest.fixture
def make_keys(tmp_path: Path) -> Callable[..., Keys]:
    """A factory: `make_keys(anna="rate=5")` writes a file with anna's key and its limits."""

    def make(**limits: str) -> Keys:
        made = {name: make_key(name) for name in limits}
        keys = Keys(tmp_path / "keys", {name: key for name, (key, _) in made.items()})
        keys.write("".join(f"{made[name][1]} {limits[name]}\n" for name in limits))
        return keys

    return make


@pytest.fixture
def keys(make_keys: Callable[..., Keys]) -> Keys:
    """The keys of anna and ben, without limits."""
    return make_keys(anna="", ben="")


@pytest.fixture
def guarded(make_service: Callable[..., Any], keys: Keys) -> Any:
    """A service that wants those keys."""
    return make_service(api_keys_file=keys.path)
