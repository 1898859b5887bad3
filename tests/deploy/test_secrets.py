"""No secret in the repository: tracked files are searched for what keys and tokens look like."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

# Each begins with letters that are searched for fast, and does not match itself.
PATTERNS = {
    "a private key": rb"-----BEGIN (?:[A-Z]+ )*PRIVATE KEY-----",
    "an AWS key": rb"A[KS]IA[0-9A-Z]{16}\b",
    "a GitHub token": rb"gh[pousr]_[0-9A-Za-z]{36}|github_pat_[0-9A-Za-z_]{60,}",
    "a GitLab token": rb"glpat-[0-9A-Za-z_-]{20}",
    "a Google key": rb"AIza[0-9A-Za-z_-]{35}\b",
    "a Slack token": rb"xox[abprs]-[0-9A-Za-z-]{20,}",
    "a Hugging Face token": rb"hf_[0-9A-Za-z]{34}\b",
    "a PyPI token": rb"pypi-[0-9A-Za-z_-]{50,}",
    "a JSON web token": rb"eyJ[0-9A-Za-z_-]{15,}\.eyJ[0-9A-Za-z_-]{15,}\.[0-9A-Za-z_-]{20,}",
    "an address with a password": rb"://[^\s/:@$<{]{1,64}:[^\s/:@$<{]{3,64}@[\w.-]+",
}
SECRETS = {kind: re.compile(pattern) for kind, pattern in PATTERNS.items()}
# Files that hold secrets by their nature, whatever is in them.
SECRET_FILES = re.compile(
    r"(^|/)(\.env|\.netrc|\.pypirc|id_(rsa|dsa|ecdsa|ed25519)|kubeconfig|.*\.(pem|key|p12|pfx))$"
)

# Files that are nobody's business in an image, secret or not.
OUTSIDE = (
    ".env",
    ".git/config",
    ".venv/bin/python",
    "deploy/tls.key",
    "docker/.env",
    "runs/lite/best.safetensors",
    "tests/conftest.py",
)
SECRET_NAME = re.compile(r"TOKEN|PASSWORD|PASSWD|SECRET|CREDENTIAL|API_?KEY|PRIVATE", re.IGNORECASE)


def secrets_in(content: bytes) -> Iterator[str]:
    for kind, pattern in SECRETS.items():
        if pattern.search(content):
            yield kind


# How .dockerignore writes any folders, anything, anything within a name, and one character.
WILDCARDS = {r"\*\*/": "(.*/)?", r"\*\*": ".*", r"\*": "[^/]*", r"\?": "[^/]"}


def sent_to_the_builder(path: str, patterns: list[str]) -> bool:
    """Whether .dockerignore lets `path` into the build: the last pattern that fits decides."""
    parts = path.split("/")
    names = ["/".join(parts[: end + 1]) for end in range(len(parts))]  # folders, too
    sent = True
    for pattern in patterns:
        expression = re.escape(pattern.lstrip("!").strip("/"))
        for wildcard, meaning in WILDCARDS.items():
            expression = expression.replace(wildcard, meaning)
        if any(re.fullmatch(expression, name) for name in names):
            sent = pattern.startswith("!")
    return sent


def secret_names(dockerfile: str) -> list[str]:
    """Arguments and variables of a Dockerfile that would keep a secret in the image's history."""
    words = re.findall(r"^(?:ARG|ENV)\s+((?:.*\\\n)*.*)$", dockerfile, re.MULTILINE)
    names = [name for each in words for name in re.findall(r"(\w+)(?==|\s*$)", each, re.MULTILINE)]
    return [name for name in names if SECRET_NAME.search(name)]


@pytest.fixture(scope="module")
def tracked(repo_root: Path) -> list[str]:
    listed = subprocess.run(
        ["git", "-C", str(repo_root), "ls-files", "-z"],
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip(f"only in a clone is known what is tracked: {listed.stderr.strip()}")
    return [name for name in listed.stdout.split("\0") if name]


def test_no_tracked_file_holds_a_secret(repo_root: Path, tracked: list[str]) -> None:
    found = {
        name: kinds
        for name in tracked
        if (repo_root / name).is_file()
        and (kinds := list(secrets_in((repo_root / name).read_bytes())))
    }
    assert found == {}


def test_no_file_of_secrets_is_tracked(tracked: list[str]) -> None:
    assert [name for name in tracked if SECRET_FILES.search(name)] == []


def ignored(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_images_are_built_from_what_is_let_in(repo_root: Path) -> None:
    patterns = ignored((repo_root / ".dockerignore").read_text(encoding="utf-8"))
    assert [path for path in OUTSIDE if sent_to_the_builder(path, patterns)] == []
    assert sent_to_the_builder("service/app.py", patterns)
    assert sent_to_the_builder("model/bundles/segvlm-lite/config.json", patterns)


@pytest.mark.parametrize(
    ("text", "path", "sent"),
    [
        ("", ".env", True),
        (".env", ".env", False),
        ("*\n!model", "model/config.py", True),
        ("*\n!model", "service/app.py", False),
        ("*\n!model\n**/*.pyc", "model/a/b.pyc", False),
        ("*\n!docker/*.py", "docker/.env", False),
        (".git", ".gitignore", True),
    ],
)
def test_dockerignore_is_read_as_docker_reads_it(text: str, path: str, sent: bool) -> None:
    assert sent_to_the_builder(path, ignored(text)) is sent


def test_no_image_is_built_with_a_secret(repo_root: Path) -> None:
    dockerfiles = {
        path.name: path.read_text(encoding="utf-8")
        for path in (repo_root / "docker").glob("*.Dockerfile")
    }
    assert dockerfiles
    assert [name for text in dockerfiles.values() for name in secret_names(text)] == []


@pytest.mark.parametrize(
    ("dockerfile", "names"),
    [
        ("ARG PYPI_TOKEN\n", ["PYPI_TOKEN"]),
        ("ENV A=1 \\\n    DB_PASSWORD=x\n", ["DB_PASSWORD"]),
        ("ARG VERSION=1\nENV PATH=/bin\n", []),
    ],
)
def test_secret_in_a_dockerfile_is_noticed(dockerfile: str, names: list[str]) -> None:
    assert secret_names(dockerfile) == names


@pytest.mark.parametrize(
    "example",
    [
        ("-----BEGIN ", "PRIVATE KEY-----"),
        ("-----BEGIN RSA ", "PRIVATE KEY-----"),
        ("AKIA", "Q3EGEXAMPLE7XYZ2"),
        ("ghp_", "a1B2" * 9),
        ("github_pat_", "11ABCDEFG0" * 8),
        ("glpat-", "x9Y8" * 5),
        ("AIza", "Sy0" + "a1B2" * 8),
        ("xoxb-", "123456789012-abcdefghij"),
        ("hf_", "aB3" * 11 + "c"),
        ("pypi-", "AgEIcHlwaS5vcmc" * 4),
        ("eyJhbGciOiJIUzI1NiJ9", ".eyJzdWIiOiIxMjM0NTYifQ", ".c2lnbmF0dXJlc2lnbmF0dXJl"),
        ("postgres://app:", "hunter2@db.example.com/x"),
    ],
)
def test_secret_is_noticed(example: tuple[str, ...]) -> None:
    assert list(secrets_in(f'token = "{"".join(example)}"'.encode()))


@pytest.mark.parametrize(
    "harmless",
    [
        "http://localhost:8000/segment",
        "https://user:$PASSWORD@example.com",
        "see https://example.com:8443/a@b",
        "sha256: 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    ],
)
def test_what_is_no_secret_is_left_alone(harmless: str) -> None:
    assert list(secrets_in(harmless.encode())) == []


@pytest.mark.parametrize("name", [".env", "deploy/tls.key", "a/id_ed25519", "cert.pem"])
def test_file_of_secrets_is_noticed(name: str) -> None:
    assert SECRET_FILES.search(name)
    assert not SECRET_FILES.search(f"{name}.example")
