"""docker-compose.yml and its override as compose reads them: merged, variables filled in."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "docker-compose.yml"
REPLICAS = ROOT / "deploy" / "compose" / "replicas.yml"
EXAMPLE = ROOT / ".env.example"

VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")
_ASSIGNMENT = re.compile(r"#?([A-Z][A-Z0-9_]*)=(.*)")


class Reset(list[Any]):
    """What stands under the tag `!reset`: the key is taken away from the file before."""


class _Loader(yaml.SafeLoader):
    pass


def _reset(loader: _Loader, node: yaml.SequenceNode) -> Reset:
    return Reset(loader.construct_sequence(node))


_Loader.add_constructor("!reset", _reset)


def read(path: Path, variables: Mapping[str, str] | None = None) -> dict[str, Any]:
    """A compose file with its variables filled in; those that are missing take their defaults."""
    given = variables or {}

    def value(found: re.Match[str]) -> str:
        return given.get(found[1], "") or found[2] or ""

    def fill(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: fill(inner) for key, inner in part.items()}
        if isinstance(part, list):
            return type(part)(fill(inner) for inner in part)
        return VARIABLE.sub(value, part) if isinstance(part, str) else part

    document: dict[str, Any] = fill(yaml.load(path.read_text(encoding="utf-8"), _Loader))
    return document


def merge(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """As `-f base -f override`: mappings are joined, lists appended, the rest replaced."""
    joined = copy.deepcopy(base)
    for key, new in override.items():
        old = joined.get(key)
        if isinstance(new, Reset):
            joined.pop(key, None)
        elif isinstance(old, dict) and isinstance(new, dict):
            joined[key] = merge(old, new)
        elif isinstance(old, list) and isinstance(new, list):
            joined[key] = old + new
        else:
            joined[key] = new
    return joined


def projects(variables: Mapping[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """What is documented to be run: the base alone, and with several replicas."""
    base = read(BASE, variables)
    return {"base": base, "replicas": merge(base, read(REPLICAS, variables))}


def used_variables() -> dict[str, str]:
    """Every variable of both files, with the default where it comes first."""
    used: dict[str, str] = {}
    for path in (BASE, REPLICAS):
        for name, default in VARIABLE.findall(path.read_text(encoding="utf-8")):
            used.setdefault(name, default)
    return used


def example() -> dict[str, str]:
    """The variables of .env.example with the values that it shows."""
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    return {found[1]: found[2] for line in lines if (found := _ASSIGNMENT.fullmatch(line))}


def seconds(duration: str) -> float:
    """A duration such as `1m30s`."""
    found = re.fullmatch(r"(?:(\d+)m)?(?:(\d+)s)?", duration)
    assert duration and found, duration
    return 60 * int(found[1] or 0) + int(found[2] or 0)
