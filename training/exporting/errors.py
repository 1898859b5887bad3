"""What an export ends with."""

from __future__ import annotations


class ExportError(ValueError):
    """An artifact is not what was promised; nothing was written."""
