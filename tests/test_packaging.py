"""pyproject.toml tells the truth: what is imported is declared, what is declared is pinned."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

ROOMS = ("model", "training", "service")
# Which extras are installed where a file is imported.
EXTRAS = {"model": ("train",), "training": ("train",), "service": ("serve",)}
# Distributions that are not called what one imports.
PROVIDERS = {
    "PIL": "pillow",
    "open_clip": "open-clip-torch",
    "opentelemetry": "opentelemetry-sdk",
    "pythonjsonlogger": "python-json-logger",
    "yaml": "pyyaml",
}
TORCH_BACKENDS = ("torch", "onnx_gpu")
TORCH_FREE_MODEL = {"__init__", "bundle", "config", "preprocess", "tokenizer"}


@pytest.fixture(scope="module")
def project(repo_root: Path) -> dict[str, Any]:
    return tomllib.loads((repo_root / "pyproject.toml").read_text(encoding="utf-8"))


def distribution(requirement: str) -> str:
    """The normalised name that a requirement or a pin begins with."""
    name = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert name, requirement
    return re.sub(r"[-_.]+", "-", name.group()).lower()


def declared(project: dict[str, Any], *extras: str) -> set[str]:
    """The distributions that an installation with these extras asks for by name."""
    table = project["project"]
    wanted = [*table["dependencies"]]
    for extra in extras:
        wanted += table["optional-dependencies"][extra]
    return {distribution(requirement) for requirement in wanted}


def imported(source: str) -> set[str]:
    """The top-level names of the absolute imports of a source file, at any depth."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names - {*ROOMS, "__future__"} - sys.stdlib_module_names


def undeclared(names: set[str], available: set[str]) -> set[str]:
    """The imported names that no declared distribution provides."""
    if "onnxruntime-gpu" in available:  # the same module in another distribution
        available = available | {"onnxruntime"}
    return {name for name in names if PROVIDERS.get(name, distribution(name)) not in available}


def extras_of(file: Path, room: str) -> tuple[str, ...]:
    """The extras that stand behind a file; the torch-free half of model has only the base."""
    if room == "model" and file.stem in TORCH_FREE_MODEL:
        return ()
    if file.parent.name == "backends" and file.stem.startswith(TORCH_BACKENDS):
        return ("serve-gpu",)
    if file.name == "tracing.py":
        return ("serve", "traces")
    return EXTRAS[room]


@pytest.mark.parametrize("room", ROOMS)
def test_imports_are_declared(room: str, repo_root: Path, project: dict[str, Any]) -> None:
    missing = {}
    for file in sorted((repo_root / room).rglob("*.py")):
        available = declared(project, *extras_of(file, room))
        if found := undeclared(imported(file.read_text(encoding="utf-8")), available):
            missing[file.relative_to(repo_root).as_posix()] = found
    assert not missing, "add them to pyproject.toml and constraints.txt"


def test_the_torch_backends_have_all_that_they_load(
    repo_root: Path, project: dict[str, Any]
) -> None:
    """They build the network, so they need what `model` needs for that."""
    loaded = "import sys, service.backends.torch, service.backends.torchscript; print(*sys.modules)"
    finished = subprocess.run(
        [sys.executable, "-c", loaded], cwd=repo_root, capture_output=True, text=True, check=True
    )
    names = {"torch", "torchvision", "timm", "open_clip", "safetensors"}
    assert names <= set(finished.stdout.split())
    assert undeclared(names, declared(project, "serve-gpu")) == set()


def test_undeclared_catches() -> None:
    names = imported("import os\nimport numpy as np\ndef f():\n    from yaml import safe_load")
    assert names == {"numpy", "yaml"}
    assert undeclared(names, {"numpy", "pillow"}) == {"yaml"}
    assert undeclared(names, {"numpy", "pyyaml"}) == set()


def test_direct_dependencies_are_pinned(repo_root: Path, project: dict[str, Any]) -> None:
    lines = (repo_root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins), pins
    extras = project["project"]["optional-dependencies"]
    assert declared(project, *extras) - {distribution(pin) for pin in pins} == set()


def test_service_extra_is_free_of_torch(project: dict[str, Any]) -> None:
    service = declared(project, "serve")
    assert not service & {"torch", "torchvision", "timm", "open-clip-torch"}
    # One module, two distributions: installing both breaks either.
    assert {"onnxruntime", "onnxruntime-gpu"} & service == {"onnxruntime"}
    assert {"onnxruntime", "onnxruntime-gpu"} & declared(project, "serve-gpu") == {
        "onnxruntime-gpu"
    }


def test_packages_are_the_directories(repo_root: Path, project: dict[str, Any]) -> None:
    found = {
        file.parent.relative_to(repo_root).as_posix().replace("/", ".")
        for room in ROOMS
        for file in (repo_root / room).rglob("*.py")
    }
    assert set(project["tool"]["setuptools"]["packages"]) == found
