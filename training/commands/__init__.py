"""The commands of `python -m training`, one file each.

A command's file holds `add`, which declares its options on the parser, and what it runs; heavy
imports are inside, so that `--help` answers at once.
"""

from __future__ import annotations

import argparse
from typing import TypeAlias

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""What `ArgumentParser.add_subparsers` answers."""
