"""What a server can try with whoever fetches an image from it; each trick with its reason."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import time
from typing import Any

import pytest

from service.errors import ImageUnreachable, ImageUrlRefused, QueueFull, TooLarge
from service.image_url import UrlImages, resolve_name
from service.memory_budget import MemoryBudget

HOST = "images.example.org"


def refused(fetcher: Any, url: str, kind: type[Exception] = ImageUrlRefused) -> str:
    with pytest.raises(kind) as caught:
        fetcher.fetch(url)
    return str(caught.value)


def test_a_file_arrives(fetcher: Any, server: Any, reply: Any) -> None:
    server.answers["/a.jpg?x=1"] = reply(b"\x00image", Content_Type="text/html")
    assert fetcher.fetch(fetcher.url("/a.jpg?x=1")) == b"\x00image"
    ((name, head),) = server.asked
    assert name == HOST  # in TLS, though the connection went to an address
    assert f"Host: {HOST}:{server.port}\r\n" in head
    assert "Accept-Encoding: identity\r\n" in head
    assert "Authorization" not in head and "Cookie" not in head


def test_a_name_in_another_script(make_fetcher: Any, server: Any, reply: Any) -> None:
    server.answers["/"] = reply(b"image")
    fetcher = make_fetcher({"xn--bcher-kva.example.net": [["127.0.0.1"]]})
    assert fetcher.fetch(fetcher.url("/", "b\u00fccher.example.net")) == b"image"


def test_the_next_address_is_tried(make_fetcher: Any, server: Any, reply: Any) -> None:
    server.answers["/"] = reply(b"image")
    with socket.create_server(("127.0.0.2", 0)) as closed:
        unreachable = closed.getsockname()[0]
    fetcher = make_fetcher({HOST: [[unreachable, "127.0.0.1"]]}, permits=lambda address: True)
    assert fetcher.fetch(fetcher.url("/")) == b"image"


# -- where it leads ---------------------------------------------------------------------------


def test_a_redirect_is_followed(make_fetcher: Any, server: Any, reply: Any) -> None:
    fetcher = make_fetcher({"cdn.example.net": [["127.0.0.1"]]})
    server.answers["/a"] = reply(status="302 Found", Location="/b", Set_Cookie="secret=1")
    server.answers["/b"] = reply(
        status="301 Moved", Location=f"https://cdn.example.net:{server.port}/c"
    )
    server.answers["/c"] = reply(b"image")
    assert fetcher.fetch(fetcher.url("/a")) == b"image"
    assert [name for name, _ in server.asked] == [HOST, HOST, "cdn.example.net"]
    assert not any("Cookie" in head for _, head in server.asked)
    assert fetcher.lookups == [HOST, HOST, "cdn.example.net"]


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("https://169.254.169.254/latest/meta-data/", "not on the list"),
        ("http://169.254.169.254/latest/meta-data/", "only https"),
        (f"http://{HOST}/a", "only https"),
        ("https://elsewhere.example.com/a", "not on the list"),
        ("//elsewhere.example.com/a", "not on the list"),
        (f"https://a:b@{HOST}/a", "user or password"),
        (f"https://{HOST}:22/", "only port"),
        ("https://localhost./", "not on the list"),
        ("https://0x7f.1/", "not on the list"),
        ("https://[::ffff:127.0.0.1]/", "not on the list"),
        ("file:///etc/passwd", "only https"),
        ("https://[::1", "no URL"),
        ("https://" + "a" * 5000, "longer"),
    ],
)
def test_a_redirect_is_checked_like_the_first_url(
    location: str, told: str, fetcher: Any, server: Any, reply: Any
) -> None:
    server.answers["/"] = reply(status="307 Temporary Redirect", Location=location)
    text = refused(fetcher, fetcher.url("/"))
    assert "redirects to a place that is not allowed" in text and told in text
    assert location not in text
    assert server.connections == 1


@pytest.mark.parametrize(("hops", "arrives"), [(3, True), (4, False)])
def test_three_redirects_at_most(
    hops: int, arrives: bool, fetcher: Any, server: Any, reply: Any
) -> None:
    for hop in range(hops):
        server.answers[f"/{hop}"] = reply(status="303 See Other", Location=f"/{hop + 1}")
    server.answers[f"/{hops}"] = reply(b"image")
    if arrives:
        assert fetcher.fetch(fetcher.url("/0")) == b"image"
    else:
        assert "more than 3 times" in refused(fetcher, fetcher.url("/0"))
        assert server.connections == 4


@pytest.mark.parametrize(
    "answers",
    [
        ["169.254.169.254"], ["10.0.0.1"], ["::1"], ["::ffff:127.0.0.1"], ["64:ff9b::7f00:1"],
        ["2002:7f00:1::"], ["100.64.0.1"], ["0.0.0.0"],
        ["127.0.0.1", "10.0.0.1"], ["10.0.0.1", "127.0.0.1"], ["8.8.8.8", "fe80::1"],
    ],
)  # fmt: skip
def test_a_name_that_leads_inside(answers: list[str], make_fetcher: Any, server: Any) -> None:
    fetcher = make_fetcher({HOST: [answers]})
    text = refused(fetcher, fetcher.url("/"))
    assert "an address that is not public" in text
    assert not any(address in text for address in answers)
    assert server.connections == 0


def test_a_resolver_that_changes_its_answer(make_fetcher: Any, server: Any, reply: Any) -> None:
    """The checked answer is the one that is used; the next is checked again."""
    server.answers["/"] = reply(b"image")
    server.answers["/r"] = reply(status="302 Found", Location="/")
    fetcher = make_fetcher({HOST: [["127.0.0.1"], ["127.0.0.1"], ["169.254.169.254"]]})
    assert fetcher.fetch(fetcher.url("/")) == b"image"
    assert fetcher.lookups == [HOST]  # once for a connection
    assert "not public" in refused(fetcher, fetcher.url("/r"))
    assert server.connections == 2


def test_the_systems_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for the absolute name, so no search domain of a cluster answers instead."""
    asked = []

    def getaddrinfo(host: str, port: int, *rest: Any, **named: Any) -> list[Any]:
        asked.append(host)
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.0.0.1", port)),
            (socket.AF_INET, socket.SOCK_STREAM, 17, "", ("10.0.0.1", port)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert asyncio.run(resolve_name(HOST, 443)) == ["::1", "10.0.0.1"]
    assert asked == [f"{HOST}."]


def test_a_name_that_nobody_knows(fetcher: Any) -> None:
    text = refused(fetcher, fetcher.url("/", "no.example.net"), ImageUnreachable)
    assert "its host is not known" in text


# -- who answers ------------------------------------------------------------------------------


def test_a_certificate_for_another_name(make_fetcher: Any, server: Any, reply: Any) -> None:
    server.answers["/"] = reply(b"image")
    fetcher = make_fetcher({"a.b.example.net": [["127.0.0.1"]]})  # the certificate's star: one part
    text = refused(fetcher, fetcher.url("/", "a.b.example.net"), ImageUnreachable)
    assert "no valid certificate for that name" in text
    assert server.asked == []


def test_a_certificate_of_nobody_known(fetcher: Any, server: Any, reply: Any) -> None:
    server.answers["/"] = reply(b"image")
    images = UrlImages(fetcher.images.policy, fetcher.images._resolve)  # trusts the web's only
    fetcher.images = images
    assert "no valid certificate" in refused(fetcher, fetcher.url("/"), ImageUnreachable)


def test_two_names_at_one_address_share_no_connection(
    make_fetcher: Any, server: Any, reply: Any
) -> None:
    server.answers["/a"] = reply(
        status="302 Found", Location=f"https://a.b.example.net:{server.port}/b"
    )
    server.answers["/b"] = reply(b"image")
    fetcher = make_fetcher({"a.b.example.net": [["127.0.0.1"]]})
    assert "no valid certificate" in refused(fetcher, fetcher.url("/a"), ImageUnreachable)
    assert len(server.asked) == 1


def test_no_proxy_of_the_environment(
    fetcher: Any, server: Any, reply: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    server.answers["/"] = reply(b"image")
    assert fetcher.fetch(fetcher.url("/")) == b"image"


# -- what it answers --------------------------------------------------------------------------


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops", "206 Partial", "304 Not Modified"])
def test_another_status(status: str, fetcher: Any, server: Any, reply: Any) -> None:
    server.answers["/"] = reply(b"the secret" if "304" not in status else b"", status=status)
    text = refused(fetcher, fetcher.url("/"), ImageUnreachable)
    assert f"status {status.split()[0]}" in text and "secret" not in text


def test_a_body_that_says_it_is_too_long(fetcher: Any, server: Any, reply: Any) -> None:
    server.answers["/"] = reply(b"", Content_Length="100001")
    assert "100,000 bytes" in refused(fetcher, fetcher.url("/"), TooLarge)


def test_a_body_without_end(fetcher: Any, server: Any) -> None:
    def endless(connection: ssl.SSLSocket, _: str) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            connection.sendall(b"1000\r\n" + b"x" * 0x1000 + b"\r\n")

    server.answers["/"] = endless
    assert "100,000 bytes" in refused(fetcher, fetcher.url("/"), TooLarge)
    assert server.left.wait(20)
    assert fetcher.budget.held == 0


def test_what_is_fetched_counts_in_the_memory_of_all(fetcher: Any, server: Any, reply: Any) -> None:
    server.answers["/"] = reply(b"x" * 50_000)
    fetcher.budget = MemoryBudget(40_000)
    refused(fetcher, fetcher.url("/"), QueueFull)
    assert fetcher.budget.held == 0


@pytest.mark.parametrize("encoding", ["gzip", "br", "GZIP", "identity, gzip"])
def test_a_bomb_is_not_opened(encoding: str, fetcher: Any, server: Any, reply: Any) -> None:
    server.answers["/"] = reply(gzip.compress(bytes(10**7)), Content_Encoding=encoding)
    assert "sends it compressed" in refused(fetcher, fetcher.url("/"), ImageUnreachable)


def drip(connection: ssl.SSLSocket, first: bytes) -> None:
    connection.sendall(first)
    while True:
        time.sleep(0.05)
        connection.sendall(b"x")


@pytest.mark.parametrize(
    "first", [b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: "]
)
def test_a_slow_drip(first: bytes, make_fetcher: Any, server: Any) -> None:
    fetcher = make_fetcher(seconds=0.5)
    server.answers["/"] = lambda connection, _: drip(connection, first)
    started = time.monotonic()
    assert "within 0.5 s" in refused(fetcher, fetcher.url("/"), ImageUnreachable)
    assert time.monotonic() - started < 10
    assert server.left.wait(20)


def test_a_resolver_that_does_not_answer(make_fetcher: Any) -> None:
    fetcher = make_fetcher(seconds=0.2)

    async def wait(host: str, port: int) -> list[str]:
        await asyncio.sleep(60)
        return []

    fetcher.images._resolve = wait
    assert "within 0.2 s" in refused(fetcher, fetcher.url("/"), ImageUnreachable)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nonly this",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1_000_000 + b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"",
    ],
    ids=["cut", "cut chunk", "negative", "two lengths", "huge header", "not HTTP", "nothing"],
)
def test_what_is_no_whole_answer(answer: bytes, fetcher: Any, server: Any) -> None:
    server.answers["/"] = lambda connection, _: connection.sendall(answer)
    text = refused(fetcher, fetcher.url("/"), ImageUnreachable)
    assert "broke off, or does not answer in HTTP" in text and "SSH" not in text


def test_the_log_has_the_host_and_never_the_url(
    fetcher: Any, server: Any, reply: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server.answers["/a?signature=secret"] = reply(status="403 Forbidden")
    with caplog.at_level("INFO"):
        refused(fetcher, fetcher.url("/a?signature=secret"), ImageUnreachable)
    assert HOST in caplog.text and "secret" not in caplog.text
