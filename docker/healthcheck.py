"""Exit status 0 while the service of this container wants requests, 1 while it does not.

An image's HEALTHCHECK runs this every few seconds, so it loads little: no curl, no client library.
"""

from __future__ import annotations

import os
import sys
from http.client import HTTPConnection, HTTPException

_EVERY_ADDRESS = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


def main() -> int:
    host = os.environ.get("SEGVLM_HOST", "")
    host = _EVERY_ADDRESS.get(host, host)
    port = int(os.environ.get("SEGVLM_PORT") or 8000)
    connection = HTTPConnection(host, port, timeout=4)
    try:
        connection.request("GET", "/readyz")
        answer = connection.getresponse()
        print(answer.status, answer.read().decode())
    except (OSError, HTTPException) as error:
        print(f"no answer from {host}, port {port}: {error}")
        return 1
    return 0 if answer.status == 200 else 1


if __name__ == "__main__":
    sys.exit(main())
