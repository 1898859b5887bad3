"""An image that lies somewhere else, fetched so that a caller cannot reach through the service.

On the event loop: a slow server costs no thread. The name is resolved here and the connection goes
to the address that was checked, with the name for TLS and Host, so an answer of the resolver that
changes meanwhile changes nothing. Every redirect begins again with the same checks.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import ip_address

import httpx

from service.errors import ImageUnreachable, ImageUrlRefused, TooLarge
from service.memory_budget import MemoryShare
from service.url_policy import Address, Target, UrlPolicy, check_redirect, check_url

logger = logging.getLogger("segvlm.image_url")

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_TRIED = 4  # addresses of a name
_HEADERS = {
    "Accept": "image/*",
    "Accept-Encoding": "identity",  # what is counted is what is kept
    "Connection": "close",
    "User-Agent": "segvlm",
}

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


async def resolve_name(host: str, port: int) -> list[str]:
    """All addresses of a name, by the system's resolver. Raises OSError."""
    loop = asyncio.get_running_loop()
    # The root's dot: no search domain, such as a cluster's own, is tried.
    answers = await loop.getaddrinfo(f"{host}.", port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(answer[4][0]) for answer in answers))


class UrlImages:
    """Fetches what `policy` allows. `verify`: whom TLS trusts, by default the web's authorities."""

    def __init__(
        self,
        policy: UrlPolicy,
        resolve: Resolve = resolve_name,
        verify: ssl.SSLContext | None = None,
    ) -> None:
        self.policy = policy
        self._resolve = resolve
        self._verify = verify
        if verify is None and policy.hosts:
            self._verify = httpx.create_ssl_context(trust_env=False)

    async def fetch(self, url: str, memory: MemoryShare) -> bytes:
        """The file at `url`; what it takes counts in `memory`.

        Raises ImageUrlRefused, ImageUnreachable, TooLarge, and what MemoryShare does.
        """
        target = check_url(url, self.policy)
        try:
            async with asyncio.timeout(self.policy.seconds):
                return await self._follow(target, memory)
        except TimeoutError:
            seconds = self.policy.seconds
            error = ImageUnreachable(f"the image did not arrive within {seconds:g} s")
            logger.info("%s: %s", target.host, error.detail)
            raise error from None
        except (ImageUrlRefused, ImageUnreachable) as error:
            # Never the URL: it may hold a signature that opens the image to everybody.
            logger.info("%s: %s (%r)", target.host, error.detail, error.__cause__)
            raise

    async def _follow(self, target: Target, memory: MemoryShare) -> bytes:
        for _ in range(self.policy.redirects + 1):
            answer = await self._get(target, memory)
            if isinstance(answer, bytes):
                return answer
            target = answer
        raise ImageUrlRefused(f"it redirects more than {self.policy.redirects} times")

    async def _get(self, target: Target, memory: MemoryShare) -> bytes | Target:
        """The file, or where it redirects to."""
        addresses = await self._addresses(target)
        assert self._verify is not None
        # One for each request: connections of another name must not serve this one, even if they
        # lead to the same address. No proxy of the environment, which would connect for us. No
        # client of httpx, which keeps cookies and writes whole URLs into the log.
        transport = httpx.AsyncHTTPTransport(verify=self._verify, trust_env=False)
        try:
            async with transport:
                response = await self._ask(transport, target, addresses)
                try:
                    return await self._read(response, target, memory)
                finally:
                    await response.aclose()
        except (httpx.HTTPError, OSError) as error:
            raise ImageUnreachable(_fault(error)) from error

    async def _addresses(self, target: Target) -> list[Address]:
        """All addresses of the name; one that is not public condemns them all."""
        try:
            answers = await self._resolve(target.host, self.policy.port)
        except OSError as error:
            raise ImageUnreachable("its host is not known; is the name spelt right?") from error
        if not answers:
            raise ImageUnreachable("its host has no address")
        addresses = [ip_address(answer) for answer in answers]
        if not all(self.policy.permits(address) for address in addresses):
            raise ImageUrlRefused("its host leads to an address that is not public")
        return addresses

    async def _ask(
        self, transport: httpx.AsyncHTTPTransport, target: Target, addresses: Sequence[Address]
    ) -> httpx.Response:
        """The answer's head, from the first address that can be reached."""
        port = target.url.port
        host = target.host if port is None else f"{target.host}:{port}"
        *others, last = addresses[:_MOST_TRIED]
        for address in (*others, last):
            request = httpx.Request(
                "GET",
                target.url.copy_with(host=str(address)),
                headers={**_HEADERS, "Host": host},
                extensions={
                    "sni_hostname": target.host,
                    "timeout": {"connect": self.policy.connect_seconds},
                },
            )
            try:
                return await transport.handle_async_request(request)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if address is last:
                    raise
        raise AssertionError

    async def _read(
        self, response: httpx.Response, target: Target, memory: MemoryShare
    ) -> bytes | Target:
        location = response.headers.get("location")
        if response.status_code in _REDIRECTS and location is not None:
            return check_redirect(target, location, self.policy)
        if response.status_code != 200:
            raise ImageUnreachable(f"its host answered with status {response.status_code}")
        if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise ImageUnreachable("its host sends it compressed, although it was asked not to")
        if int(response.headers.get("content-length", 0)) > self.policy.max_bytes:
            raise self._too_large()
        received = bytearray()
        async for chunk in response.aiter_raw():
            if len(received) + len(chunk) > self.policy.max_bytes:
                raise self._too_large()
            memory.take(len(chunk))
            received += chunk
        return bytes(received)

    def _too_large(self) -> TooLarge:
        limit = self.policy.max_bytes
        return TooLarge(
            f"the image at the URL is longer than {limit:,} bytes; name a smaller or more "
            "compressed one (SEGVLM_MAX_BODY_BYTES sets the limit)",
            limit,
        )


def _fault(error: BaseException) -> str:
    """In words, without what the other side said."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return "its host has no valid certificate for that name"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return "its host cannot be connected to"
    return "its host broke off, or does not answer in HTTP"
