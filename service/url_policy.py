"""Which URLs an image may be fetched from, and to which addresses their names may lead.

Pure: nothing here asks the network. A URL is taken apart once, and the connection is made from the
parts that were checked, so there are no two readings of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network

import httpx

from service.errors import ImageUrlRefused

Address = IPv4Address | IPv6Address

_LONGEST_URL = 4096
_NAME = re.compile(r"([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]*[a-z0-9])?")

# All that is routed as unicast; what carries an IPv4 address inside (mapped, NAT64) lies outside,
# but for 6to4.
_UNICAST = IPv6Network("2000::/3")
_SIX_TO_FOUR = IPv6Network("2002::/16")
# Azure's servers reach the host that runs them here; to `ipaddress` it is like any other.
_HOST_OF_A_CLOUD = IPv4Address("168.63.129.16")


def is_public(address: Address) -> bool:
    """Whether an address is one of the internet, and of no private, local or special use."""
    if address.is_multicast or address.is_reserved or not address.is_global:
        return False
    if isinstance(address, IPv4Address):
        return address != _HOST_OF_A_CLOUD
    return address in _UNICAST and address not in _SIX_TO_FOUR


@dataclass(frozen=True, slots=True)
class UrlPolicy:
    """What is allowed. Sizes are bytes.

    hosts: names in ASCII, `*.example.com` for every name below one. seconds: for everything, the
    redirects included.
    """

    hosts: tuple[str, ...]
    max_bytes: int
    seconds: float = 10.0
    connect_seconds: float = 3.0
    redirects: int = 3
    port: int = 443
    permits: Callable[[Address], bool] = is_public

    def lists(self, host: str) -> bool:
        """Whether a name is on the list."""
        return any(
            host.endswith(each[1:]) if each.startswith("*.") else host == each
            for each in self.hosts
        )


@dataclass(frozen=True, slots=True)
class Target:
    """A URL that was checked; `host` is its name in ASCII, without the root's dot."""

    url: httpx.URL
    host: str


def check_url(text: str, policy: UrlPolicy) -> Target:
    """Raises ImageUrlRefused."""
    if not policy.hosts:
        raise ImageUrlRefused("this service fetches no images; send the image itself")
    try:
        return check_target(httpx.URL(text[: _LONGEST_URL + 1]), policy)
    except (httpx.InvalidURL, ValueError) as error:
        raise ImageUrlRefused("not a URL; send https://HOST/PATH") from error


def check_redirect(target: Target, location: str, policy: UrlPolicy) -> Target:
    """Where a redirect leads, checked like the first URL. Raises ImageUrlRefused."""
    try:
        return check_target(target.url.join(location), policy)
    except (httpx.InvalidURL, ValueError, ImageUrlRefused) as error:
        # Not where it leads: that may be a name that only the operator's network should know.
        fault = error.detail if isinstance(error, ImageUrlRefused) else "it is no URL"
        raise ImageUrlRefused(f"it redirects to a place that is not allowed: {fault}") from error


def check_target(url: httpx.URL, policy: UrlPolicy) -> Target:
    """Raises ImageUrlRefused."""
    if len(str(url)) > _LONGEST_URL:
        raise ImageUrlRefused(f"the URL is longer than {_LONGEST_URL:,} characters")
    if url.scheme != "https":
        raise ImageUrlRefused("only https is allowed; send https://HOST/PATH")
    if url.userinfo:
        raise ImageUrlRefused("a user or password in the URL is not allowed; leave it out")
    host = url.raw_host.decode("ascii").removesuffix(".")
    if not _NAME.fullmatch(host) or not policy.lists(host):
        raise ImageUrlRefused("its host is not on the list of this service (SEGVLM_URL_HOSTS)")
    if (url.port or 443) != policy.port:
        raise ImageUrlRefused(f"only port {policy.port} is allowed; leave the port out")
    return Target(url, host)
