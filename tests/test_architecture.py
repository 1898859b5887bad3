"""The rules of docs/architecture.md, as tests.

Every rule is a function from one source file to the violations in it. Each is run over the
repository, and over a small counterexample that it must catch.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOMS = ("model", "training", "service")
HEAVY = frozenset({"torch", "torchvision", "timm", "open_clip"})
TORCH_FREE_MODEL = frozenset(
    {
        "model/__init__.py",
        "model/bundle.py",
        "model/bundle_config.py",
        "model/calibration.py",
        "model/config.py",
        "model/preprocess.py",
        "model/probe.py",
        "model/tokenizer.py",
    }
)
# What a room may import of ours. A name allows everything below it.
ALLOWED = {
    "model": ("model",),
    "training": ("training", "model"),
    "service": (
        "service",
        "model.bundle",
        "model.calibration",
        "model.preprocess",
        "model.probe",
        "model.tokenizer",
    ),
}
# The files of service/backends/ that a service without torch never loads, by how they begin.
TORCH_BACKENDS = ("torch", "onnx_gpu")
ALLOWED_TORCH_BACKENDS = ("service", "model")
STDLIB_ONLY = frozenset(
    f"service/{name}.py"
    for name in (
        "batch_costs",
        "batch_policy",
        "batch_queue",
        "batcher",
        "device",
        "flight",
        "submission",
        "watchdog",
    )
)
STDLIB_ONLY_SIBLINGS = tuple(f"service.{PurePosixPath(path).stem}" for path in STDLIB_ONLY)
CATCH_ALL = frozenset({"util", "utils", "misc", "common", "helper", "helpers"})
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

Rule = Callable[[str, ast.Module], Iterator[str]]


# -- reading imports --------------------------------------------------------------------------


def imported_names(path: str, tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of every import at any depth, relative ones resolved.

    `from a import b` yields `a.b`, because b may be a module. `import_module("a.b")` and
    `__import__("a.b")` count when the name is a literal.
    """
    package = PurePosixPath(path).parent.parts
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            origin = ".".join((*base, *([node.module] if node.module else [])))
            yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            function, name = node.func, node.args[0]
            called = getattr(function, "attr", getattr(function, "id", ""))
            if called in {"import_module", "__import__"} and isinstance(name, ast.Constant):
                yield node.lineno, str(name.value)


def is_torch_backend(path: str) -> bool:
    """Whether a file belongs to the backends that need torch."""
    file = PurePosixPath(path)
    return file.parent == PurePosixPath("service/backends") and file.name.startswith(TORCH_BACKENDS)


def is_within(name: str, allowed: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of `allowed` or lies below one."""
    return any(name == root or name.startswith(root + ".") for root in allowed)


# -- the rules --------------------------------------------------------------------------------


def import_arrows(path: str, tree: ast.Module) -> Iterator[str]:
    """A room imports only the rooms that its arrow points at."""
    allowed = ALLOWED.get(path.split("/")[0])
    if allowed is None:
        return
    if is_torch_backend(path):
        allowed = ALLOWED_TORCH_BACKENDS
    for line, name in imported_names(path, tree):
        if name.split(".")[0] in ROOMS and not is_within(name, allowed):
            yield f"{path}:{line} imports {name}"


def heavy_imports(path: str, tree: ast.Module) -> Iterator[str]:
    """torch stays out of the service, but for its backends, and of the torch-free half of model."""
    in_service = path.startswith("service/") and not is_torch_backend(path)
    if not in_service and path not in TORCH_FREE_MODEL:
        return
    for line, name in imported_names(path, tree):
        if name.split(".")[0] in HEAVY:
            yield f"{path}:{line} imports {name}"


def torch_free_siblings(path: str, tree: ast.Module) -> Iterator[str]:
    """The torch-free files of model import only each other, or torch comes in by the back door."""
    if path not in TORCH_FREE_MODEL:
        return
    siblings = tuple(f"model.{PurePosixPath(file).stem}" for file in TORCH_FREE_MODEL)
    for line, name in imported_names(path, tree):
        if name.split(".")[0] == "model" and not is_within(name, siblings):
            yield f"{path}:{line} imports {name}"


def stdlib_only(path: str, tree: ast.Module) -> Iterator[str]:
    """The batcher and its policy know no framework and no array."""
    if path not in STDLIB_ONLY:
        return
    for line, name in imported_names(path, tree):
        known = name.split(".")[0] in sys.stdlib_module_names
        if not known and not is_within(name, STDLIB_ONLY_SIBLINGS):
            yield f"{path}:{line} imports {name}"


def environment_reads(path: str, tree: ast.Module) -> Iterator[str]:
    """The service reads the environment in settings.py and nowhere else."""
    if not path.startswith("service/") or path == "service/settings.py":
        return
    readers = {"environ", "environb", "getenv", "getenvb"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in readers:
            yield f"{path}:{node.lineno} reads {node.attr}"
    for line, name in imported_names(path, tree):
        if name.startswith("os.") and name.split(".")[-1] in readers:
            yield f"{path}:{line} imports {name}"


def pure_asgi(path: str, tree: ast.Module) -> Iterator[str]:
    """No BaseHTTPMiddleware, in either spelling: behind it a disconnect is never seen."""
    if not path.startswith("service/"):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr == "middleware":
            yield f"{path}:{node.lineno} uses .middleware(...)"
    for line, name in imported_names(path, tree):
        if name.endswith(".BaseHTTPMiddleware"):
            yield f"{path}:{line} imports {name}"


def file_names(path: str, tree: ast.Module) -> Iterator[str]:
    """A file is named for the noun in it; tests hold no packages (they would shadow the rooms)."""
    del tree
    file = PurePosixPath(path)
    if file.stem in CATCH_ALL:
        yield f"{path} is a catch-all; name it for the noun in it"
    if file.parts[0] == "tests" and file.name == "__init__.py":
        yield f"{path} would shadow a package of ours"


def room_sizes(path: str, tree: ast.Module) -> Iterator[str]:
    """Outside the tests, a file and a function stay readable in one sitting."""
    if path.startswith("tests/"):
        return
    last = max((getattr(node, "end_lineno", 0) for node in tree.body), default=0)
    if last > MAX_FILE_LINES:
        yield f"{path} has {last} lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > MAX_FUNCTION_LINES:
                yield f"{path}:{node.lineno} {node.name} has {lines} lines"


RULES: tuple[Rule, ...] = (
    import_arrows,
    heavy_imports,
    torch_free_siblings,
    stdlib_only,
    environment_reads,
    pure_asgi,
    file_names,
    room_sizes,
)

# -- the rules over the repository ------------------------------------------------------------


@pytest.fixture(scope="module")
def sources(repo_root: Path) -> dict[str, ast.Module]:
    """Every Python file of the repository, parsed, by its path from the root."""
    files: dict[str, ast.Module] = {}
    for entry in sorted(repo_root.iterdir()):
        if entry.name.startswith(".") or entry.name in {"build", "dist"}:
            continue
        for file in sorted(entry.rglob("*.py")) if entry.is_dir() else [entry]:
            if file.suffix == ".py":
                relative = file.relative_to(repo_root).as_posix()
                files[relative] = ast.parse(file.read_text(encoding="utf-8"), filename=relative)
    return files


def test_every_room_is_read(sources: dict[str, ast.Module]) -> None:
    """The named files exist: a rule about a renamed file would pass by seeing nothing."""
    assert TORCH_FREE_MODEL | STDLIB_ONLY | {"service/settings.py"} <= sources.keys()
    assert {path.split("/")[0] for path in sources} >= {*ROOMS, "tests"}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_repository_obeys(rule: Rule, sources: dict[str, ast.Module]) -> None:
    violations = [found for path, tree in sources.items() for found in rule(path, tree)]
    assert not violations, "\n".join([str(rule.__doc__), *violations])


@pytest.mark.parametrize(
    ("rule", "path", "source"),
    [
        (import_arrows, "model/neck.py", "import training.losses"),
        (import_arrows, "model/neck.py", "def f():\n    from service import engine"),
        (import_arrows, "training/trainer.py", "from service.engine import Engine"),
        (import_arrows, "service/engine.py", "from model.segvlm import build_segvlm"),
        (import_arrows, "service/engine.py", "from model import segvlm"),
        (import_arrows, "service/engine.py", "import model"),
        (import_arrows, "service/routes/segment.py", "from ...training import losses"),
        (import_arrows, "service/engine.py", "importlib.import_module('training.export')"),
        (import_arrows, "service/backends/onnx.py", "from model.segvlm import build_segvlm"),
        (import_arrows, "service/backends/torch.py", "from training.learner import Learner"),
        (import_arrows, "service/torch_engine.py", "from model.checkpoint import load"),
        (heavy_imports, "service/engine.py", "import torch"),
        (heavy_imports, "service/routes/segment.py", "def f():\n    from torch import nn"),
        (heavy_imports, "service/app.py", "__import__('torchvision')"),
        (heavy_imports, "service/backends/onnx.py", "def f():\n    import torch"),
        (heavy_imports, "service/backends/__init__.py", "import torchvision"),
        (heavy_imports, "service/torch_engine.py", "import torch"),
        (heavy_imports, "model/preprocess.py", "import torch.nn.functional as F"),
        (heavy_imports, "model/tokenizer.py", "from open_clip import tokenizer"),
        (torch_free_siblings, "model/bundle.py", "from .segvlm import SegVLM"),
        (torch_free_siblings, "model/__init__.py", "from model.checkpoint import load"),
        (stdlib_only, "service/batcher.py", "import numpy as np"),
        (stdlib_only, "service/batch_policy.py", "from service.engine import Engine"),
        (environment_reads, "service/app.py", "import os\nos.environ['PORT']"),
        (environment_reads, "service/engine.py", "from os import getenv"),
        (pure_asgi, "service/app.py", "@app.middleware('http')\ndef f(): ..."),
        (
            pure_asgi,
            "service/app.py",
            "from starlette.middleware.base import BaseHTTPMiddleware",
        ),
        (file_names, "training/data/utils.py", ""),
        (file_names, "tests/model/__init__.py", ""),
        (room_sizes, "model/neck.py", "x = 1\n" * (MAX_FILE_LINES + 1)),
        (room_sizes, "model/neck.py", "def f():\n" + "    x = 1\n" * MAX_FUNCTION_LINES),
    ],
)
def test_rule_catches(rule: Rule, path: str, source: str) -> None:
    assert len(list(rule(path, ast.parse(source)))) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("model/neck.py", "import torch\nfrom model.config import SegVLMConfig"),
        ("training/trainer.py", "from model.segvlm import build_segvlm\nimport timm"),
        ("service/engine.py", "from model.bundle import Bundle\nfrom model import preprocess"),
        ("service/backends/torch.py", "import torch\nfrom model import checkpoint"),
        ("service/backends/torch_device.py", "from torch import Tensor"),
        ("service/backends/onnx_gpu.py", "import torch\nfrom service.backends import base"),
        ("service/batcher.py", "import threading\nfrom service.batch_policy import take_batch"),
        ("service/settings.py", "import os\nos.environ['PORT']"),
        ("model/modeling.py", "import modeling_tools\nfrom torchmetrics import Metric"),
        ("model/neck.py", "x = 1\n" * MAX_FILE_LINES),
    ],
)
def test_rules_permit(path: str, source: str) -> None:
    tree = ast.parse(source)
    assert [found for rule in RULES for found in rule(path, tree)] == []


# -- what an import really brings in ----------------------------------------------------------


def heavy_modules_after(statement: str, search_path: Path) -> set[str]:
    """Run `statement` in a fresh interpreter and return what it left of HEAVY in sys.modules."""
    program = f"{statement}\nimport sys\nprint(*sorted(sys.modules), sep='\\n')"
    finished = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(search_path)},
        cwd=search_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    return HEAVY & set(finished.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import service.app",
        "import service.backends.onnx, service.backends.onnx_providers, service.backends.fake",
        "import model, model.preprocess, model.tokenizer, model.bundle, model.config, model.probe",
    ],
)
def test_import_leaves_torch_out(statement: str, repo_root: Path) -> None:
    assert heavy_modules_after(statement, repo_root) == set()


def test_import_check_sees_an_indirect_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("")
    (tmp_path / "indirect.py").write_text("import torch")
    assert heavy_modules_after("import indirect", tmp_path) == {"torch"}
