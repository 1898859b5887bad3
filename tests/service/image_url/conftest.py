"""Servers on this machine that play tricks, with certificates of an authority of the tests."""

from __future__ import annotations

import asyncio
import datetime
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from service.image_url import UrlImages
from service.memory_budget import MemoryBudget, MemoryShare
from service.url_policy import UrlPolicy, is_public

HOST = "images.example.org"
Answer = Callable[[ssl.SSLSocket, str], None]


class Authority:
    """Signs certificates; `trusting` is what a client that knows it uses."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Tests")])
        certificate = self._sign(self._name, self._key, x509.BasicConstraints(True, None))
        pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
        self.trusting = ssl.create_default_context(cadata=pem)

    def serving(self, *hosts: str) -> ssl.SSLContext:
        """What a server uses that has a certificate for these names."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts])
        certificate = self._sign(x509.Name([]), key, names)
        path = self._directory / f"{hosts[0]}.pem"
        path.write_bytes(
            certificate.public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(path)
        return context

    def _sign(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(hours=1))
            .add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
            .sign(self._key, hashes.SHA256())
        )


@dataclass
class TrickServer:
    """Answers each path with a function; `asked` has (name in TLS, first lines) of each request."""

    context: ssl.SSLContext
    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[tuple[str | None, str]] = field(default_factory=list)
    connections: int = 0
    left: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._name: str | None = None
        self.context.sni_callback = self._note_name
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _note_name(self, _: ssl.SSLObject, name: str, __: ssl.SSLContext) -> None:
        self._name = name

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self._listener.accept()
            except OSError:  # closed
                return
            self.connections += 1
            threading.Thread(target=self._answer, args=(plain,), daemon=True).start()

    def _answer(self, plain: socket.socket) -> None:
        plain.settimeout(30)
        try:
            with self.context.wrap_socket(plain, server_side=True) as connection:
                head = b""
                while b"\r\n\r\n" not in head:
                    head += connection.recv(4096) or b"\r\n\r\n"
                text = head.decode("latin-1")
                self.asked.append((self._name, text))
                self.answers[text.split()[1]](connection, text)
        except OSError:  # whom it served has left
            self.left.set()


@pytest.fixture(scope="session")
def reply() -> Callable[..., Answer]:
    """A factory: a whole answer, with headers as keywords."""

    def make(body: bytes = b"", status: str = "200 OK", **headers: str) -> Answer:
        lines = {"Content_Length": str(len(body)), **headers}
        head = "".join(f"{name.replace('_', '-')}: {text}\r\n" for name, text in lines.items())
        whole = f"HTTP/1.1 {status}\r\n{head}\r\n".encode("latin-1") + body
        return lambda connection, _: connection.sendall(whole)

    return make


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def server(authority: Authority) -> Iterator[TrickServer]:
    """A server of HOST and of every name below example.net."""
    one = TrickServer(authority.serving(HOST, "*.example.net", "xn--bcher-kva.example.net"))
    yield one
    one.close()


@dataclass
class Fetcher:
    """The real fetcher, on whose list the server's names are, and whose resolver is this table."""

    images: UrlImages
    names: dict[str, list[list[str]]]
    budget: MemoryBudget
    lookups: list[str]
    port: int

    def url(self, path: str, host: str = HOST) -> str:
        return f"https://{host}:{self.port}{path}"

    def fetch(self, url: str) -> bytes:
        memory = MemoryShare(self.budget)
        try:
            return asyncio.run(self.images.fetch(url, memory))
        finally:
            memory.release()


@pytest.fixture
def make_fetcher(server: TrickServer, authority: Authority) -> Callable[..., Fetcher]:
    """A factory: `names` are the resolver's answers, one list for each look-up, the last repeated;
    other keywords are the policy's."""

    def make(names: dict[str, list[list[str]]] | None = None, **limits: object) -> Fetcher:
        known = {HOST: [["127.0.0.1"]], **(names or {})}
        lookups: list[str] = []

        async def resolve(host: str, port: int) -> list[str]:
            lookups.append(host)
            if host not in known:
                raise socket.gaierror(socket.EAI_NONAME, "unknown")
            answers = known[host]
            return answers.pop(0) if len(answers) > 1 else answers[0]

        options: dict[str, Any] = {
            "hosts": (HOST, "*.example.net"),
            "max_bytes": 100_000,
            "seconds": 20.0,
            "port": server.port,
            "permits": lambda address: address == ip_address("127.0.0.1") or is_public(address),
        }
        policy = UrlPolicy(**(options | limits))
        images = UrlImages(policy, resolve, authority.trusting)
        return Fetcher(images, known, MemoryBudget(10**6), lookups, server.port)

    return make


@pytest.fixture
def fetcher(make_fetcher: Callable[..., Fetcher]) -> Fetcher:
    return make_fetcher()
