"""Prints what pyproject.toml requires: of every installation, and of the extras that are named.

    python list_requirements.py serve traces > requirements.txt

So an image installs dependencies before our files are copied, and keeps that layer while only our
files change.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def main(extras: list[str]) -> None:
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    groups = [project["dependencies"]]
    groups += [project["optional-dependencies"][extra] for extra in extras]
    print("\n".join(requirement for group in groups for requirement in group))


if __name__ == "__main__":
    main(sys.argv[1:])
