"""What the documents tell a reader to type exists, and what they link to is there."""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

DOCUMENTS = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
TEXT_FILES = {"", ".cfg", ".json", ".md", ".py", ".sh", ".toml", ".txt", ".yaml", ".yml"}
# A path of one machine, or a registry's host; bracketed so that this line is not one itself.
PRIVATE = re.compile(
    r"(?<![\w.~$}])/(?:work|farm|root|home|Users|mnt)/"
    r"|(?:pythonhoste[d]|pyp[i]|registry\.npmj[s]|deb\.debia[n])\.org"
)


def documents(root: Path) -> list[Path]:
    """The Markdown of the repository: the root's named files, and all of docs."""
    return [root / name for name in DOCUMENTS] + sorted((root / "docs").rglob("*.md"))


def fenced(markdown: str, *languages: str) -> list[str]:
    """The code blocks of a document in one of `languages`."""
    return [body for language, body in FENCE.findall(markdown) if language in languages]


def commands(markdown: str) -> Iterator[list[str]]:
    """The commands of the shell blocks, continued lines joined, comments dropped, split."""
    for block in fenced(markdown, "bash", "sh", "shell", "console"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            if words:
                yield words


def make_targets(makefile: str) -> set[str]:
    """The targets that a Makefile defines by a plain name."""
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", makefile, re.MULTILINE))


@functools.cache
def help_text(module: str, *subcommand: str) -> str:
    """What `python -m module subcommand --help` prints; an unknown subcommand fails here."""
    main = importlib.import_module(f"{module}.__main__").main
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as ended:
        main([*subcommand, "--help"])
    assert ended.value.code == 0, f"python -m {module} {subcommand} --help"
    return printed.getvalue()


def unknown_parts(words: list[str], root: Path) -> list[str]:
    """What a documented command names that this repository does not have.

    Looks at `make` targets, at subcommands and options of `python -m` for our own modules, and
    at every word that is a path into a room of ours.
    """
    unknown = []
    if words[0] == "make":
        named = {word for word in words[1:] if "=" not in word and not word.startswith("-")}
        unknown += sorted(named - make_targets((root / "Makefile").read_text()))
    if "-m" in words[:-1] and (module := words[words.index("-m") + 1]) in {"service", "training"}:
        subcommand, *rest = words[words.index("-m") + 2 :]
        if not re.search(rf"\b{re.escape(subcommand)}\b", help_text(module)):
            return [f"{module} {subcommand}"]
        options = {word.split("=")[0] for word in rest if word.startswith("--")}
        path = [subcommand]
        if rest and rest[0].isalnum() and "DATA_SET" in help_text(module, subcommand):
            path.append(rest[0])
        known = set(re.findall(r"--[\w-]+", help_text(module, *path)))
        unknown += sorted(options - known)
    ours = re.compile(r"^(?:model|training|service|tests|docs|benchmarks)/")
    unknown += [word for word in words if ours.match(word) and not (root / word).exists()]
    return unknown


def anchors(markdown: str) -> set[str]:
    """The anchors that a Markdown renderer gives to the headings."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", markdown), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(document: Path) -> list[str]:
    """The relative links of a document whose file or heading does not exist."""
    text = document.read_text(encoding="utf-8")
    broken = []
    for pair in LINK.findall(FENCE.sub("", text)):
        target = pair[0] or pair[1]
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = document.parent / name if name else document
        in_text = file.suffix == ".md" and file.is_file() and anchor
        if not file.exists() or (in_text and anchor not in anchors(file.read_text("utf-8"))):
            broken.append(target)
    return broken


def repository_texts(root: Path) -> Iterator[Path]:
    """Every text file that the repository could publish, CI entry included."""
    for entry in sorted(root.iterdir()):
        if entry.name.startswith(".") and entry.name not in {".ci", ".gitignore"}:
            continue
        if entry.name in {"build", "dist", "data", "runs", "outputs"}:
            continue
        for file in sorted(entry.rglob("*")) if entry.is_dir() else [entry]:
            if file.is_file() and file.suffix in TEXT_FILES and file.stat().st_size < 1_000_000:
                yield file


# -- over the repository ----------------------------------------------------------------------


def test_readme_shows_both_doors(repo_root: Path) -> None:
    told = list(commands((repo_root / "README.md").read_text()))
    assert ["make", "serve"] in told and any(words[0] == "curl" for words in told)


def test_documented_commands_exist(repo_root: Path) -> None:
    unknown = [
        f"{document.name}: {shlex.join(words)}: no {part}"
        for document in documents(repo_root)
        for words in commands(document.read_text(encoding="utf-8"))
        for part in unknown_parts(words, repo_root)
    ]
    assert not unknown, "\n".join(unknown)


def test_documented_python_compiles(repo_root: Path) -> None:
    for document in documents(repo_root):
        for block in fenced(document.read_text(encoding="utf-8"), "python"):
            ast.parse(block, filename=document.name)


def test_links_resolve(repo_root: Path) -> None:
    broken = {file.name: found for file in documents(repo_root) if (found := broken_links(file))}
    assert not broken


def test_no_machine_paths_or_registry_hosts(repo_root: Path) -> None:
    found = {
        file.relative_to(repo_root).as_posix(): match.group()
        for file in repository_texts(repo_root)
        if (match := PRIVATE.search(file.read_text(encoding="utf-8", errors="replace")))
    }
    assert not found


# -- each check catches what it is for --------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "missing"),
    [
        ("make servee PORT=1", ["servee"]),
        ("python -m service fly", ["service fly"]),
        ("python -m service serve --no-such-option 3", ["--no-such-option"]),
        ("python -m training train training/configs/absent.yaml", ["training/configs/absent.yaml"]),
        ("make serve PORT=9000", []),
        (".venv/bin/python -m service serve --port 9000", []),
    ],
)
def test_unknown_parts_catches(line: str, missing: list[str], repo_root: Path) -> None:
    assert unknown_parts(shlex.split(line), repo_root) == missing


def test_commands_joins_and_drops_comments() -> None:
    text = "```bash\nmake test  # all\ncurl -F a=1 \\\n  http://localhost\n```\n```python\nx\n```\n"
    assert list(commands(text)) == [["make", "test"], ["curl", "-F", "a=1", "http://localhost"]]


def test_broken_links_catches(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text(
        "# One two\n[x](b.md) [y](#one-two) [z](#three) ![p](c.png) [w](https://e.f)\n"
    )
    assert broken_links(document) == ["b.md", "#three", "c.png"]


@pytest.mark.parametrize(
    ("text", "private"),
    [
        ("see /" + "home/me/x", True),
        ("index https://py" + "pi.org/simple", True),
        ("kept in ~/" + "home/x or ./" + "work/x", False),
        ("POST http://localhost:8000/segment", False),
    ],
)
def test_private_catches(text: str, private: bool) -> None:
    assert bool(PRIVATE.search(text)) is private
