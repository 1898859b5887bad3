"""uvicorn with our way of stopping: refuse what is new, finish what was accepted, then exit."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.doors import AdminDoor
from service.engine import Engine
from service.settings import Settings
from service.stream_transport import StreamTransport
from service.streams import Streams

logger = logging.getLogger("segvlm.server")

# Seconds that an idle connection stays open: longer than balancers and clients keep theirs (60 is
# common), because whoever closes second may just have sent a request into the closing.
_KEEP_ALIVE = 75


class Server(uvicorn.Server):
    """Serves until a signal or the death of the engine's worker.

    First SIGTERM or SIGINT: readiness goes, new requests get 503, accepted ones are finished;
    after `drain_seconds`, when none is left, the listener closes. At `shutdown_timeout` it closes
    in any case. A second signal stops at once. `exit_code` is 1 if the worker died.
    A second port, if the settings name one, opens and closes with the first.
    """

    def __init__(self, settings: Settings, engine: Engine) -> None:
        app = create_app(settings, engine)
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                access_log=False,  # ours names the request's id and the time of each stage
                log_config=None,
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=round(settings.shutdown_timeout),
                ws=StreamTransport,
                ws_max_size=settings.max_body_bytes,
                ws_per_message_deflate=False,  # images are compressed, masks are small
                # Pings keep proxies from closing, but none is failed: a pong comes behind all
                # frames that the network holds. Sessions see for themselves whether a peer lives.
                ws_ping_timeout=None,
            )
        )
        self.exit_code = 0
        self._settings = settings
        self._engine = engine
        self._streams: Streams = app.state.streams
        self._admin = _admin_config(app)
        self._admin_sockets: list[socket.socket] = []
        self._announced = False
        self._told_at: float | None = None

    def run(self, sockets: list[socket.socket] | None = None) -> None:
        """Serve until stopped. Raises ValueError if an address cannot be listened on."""
        settings = self._settings
        bound = sockets or _bind(settings.host, settings.port, "SEGVLM_HOST and SEGVLM_PORT")
        if settings.admin_port:
            names = "SEGVLM_ADMIN_HOST and SEGVLM_ADMIN_PORT"
            self._admin_sockets = _bind(settings.admin_host, settings.admin_port, names)
        super().run(bound)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen; uvicorn then drains and closes all of `servers` together."""
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        self._admin.load()
        for bound in self._admin_sockets:
            self.servers.append(await loop.create_server(self._admin_connection, sock=bound))

    def _admin_connection(self) -> asyncio.Protocol:
        make: Any = self._admin.http_protocol_class
        connection: asyncio.Protocol = make(
            config=self._admin, server_state=self.server_state, app_state=self.lifespan.state
        )
        return connection

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Runs inside a signal handler, so it only notes; `on_tick` acts within 0.1 s.

        Does not call uvicorn's own, which raises the signal again at the end: a stop that went
        well ends with status 0.
        """
        if self._told_at is None:
            self._told_at = time.monotonic()
            return
        self.should_exit = self.force_exit = True
        self.config.timeout_graceful_shutdown = 1

    async def on_tick(self, counter: int) -> bool:
        """Called ten times a second by uvicorn."""
        if not self._announced and self._engine.ready:
            self._announced = True
            self._announce()
        if self._told_at is not None:
            self._drain(time.monotonic() - self._told_at)
        elif not self._engine.alive:
            logger.critical("exiting for the supervisor to restart: %s", self._engine.fault)
            self.exit_code = 1
            self.should_exit = True
        return await super().on_tick(counter)

    def _drain(self, elapsed: float) -> None:
        if not self._engine.draining:
            logger.info("stopping: %d images in flight are finished first", self._engine.images)
            self._engine.drain()
            self._streams.drain()
        busy = self._engine.images or self._streams.open
        left = self._settings.shutdown_timeout - elapsed
        if left <= 0 or (elapsed >= self._settings.drain_seconds and not busy):
            self.config.timeout_graceful_shutdown = max(1, round(left))
            self.should_exit = True

    def _announce(self) -> None:
        """One line for a person: what runs where, and a command to try."""
        url = _url(self.servers[0].sockets[0])
        operators = _url(self._admin_sockets[0]) if self._admin_sockets else url
        spec = self._engine.spec
        print(
            f"{spec.name} {spec.version} ({self._engine.backend_name}) is ready on {url} "
            f'(API at {operators}/docs) - try: curl -F image=@photo.jpg -F "expression=the person" '
            f"{url}/segment",
            flush=True,
        )


def _admin_config(app: FastAPI) -> uvicorn.Config:
    """Of the second port's connections. The lifespan, and the limits of a stop, are the first's."""
    return uvicorn.Config(
        AdminDoor(app),
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE,
        ws="none",
    )


def _url(listener: socket.socket) -> str:
    """As a person on this machine types it."""
    host, port = listener.getsockname()[:2]
    shown = "localhost" if host in ("0.0.0.0", "::", "127.0.0.1") else host
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"


def _bind(host: str, port: int, settings: str) -> list[socket.socket]:
    """A socket for each address that `host` means; uvicorn listens on them when it is ready.

    Left to uvicorn, a fault would end the process with a line that names no address. `settings`:
    where it was chosen.
    """
    sockets: list[socket.socket] = []
    try:
        for family, kind, _, _, address in socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            sockets.append(socket.socket(family, kind))
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:  # 0.0.0.0 may have the same port
                sockets[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sockets[-1].bind(address)
    except OSError as error:
        for each in sockets:
            each.close()
        raise ValueError(
            f"cannot listen on {host}, port {port}: {error.strerror}; choose another address or "
            f"port with {settings}"
        ) from error
    return sockets
