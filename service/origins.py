"""Which web pages may open a WebSocket here: a browser asks nobody before it does."""

from __future__ import annotations

from collections.abc import Collection
from urllib.parse import urlsplit


def origin_allowed(origin: str | None, host: str, allowed: Collection[str] = ()) -> bool:
    """Whether the page that a handshake comes from may have it.

    Args:
        origin: the header Origin; only browsers send it, and no script can change it.
        host: the header Host, with its port. A proxy in front must pass it on as it came.
        allowed: further origins, such as `https://example.com`; `*` allows all.
    """
    if origin is None or "*" in allowed or origin in allowed:
        return True
    # Not the scheme: behind a proxy that ends TLS ours is another than the page's.
    return bool(host) and urlsplit(origin).netloc.lower() == host.lower()
