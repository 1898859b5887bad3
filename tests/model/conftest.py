"""Property tests on shared machines: an example may be slow without being wrong."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("no-deadline", deadline=None, print_blob=True)
if settings.get_current_profile_name() == "default":  # `--hypothesis-profile` goes first
    settings.load_profile("no-deadline")
