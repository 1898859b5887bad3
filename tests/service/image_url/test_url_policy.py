"""Which URLs and addresses are let through, without a network."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from service.errors import ImageUrlRefused
from service.settings import SettingsError, load_settings
from service.url_policy import UrlPolicy, check_url, is_public

POLICY = UrlPolicy(hosts=("images.example.org", "*.example.net"), max_bytes=1)


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("https://images.example.org/a.jpg?x=1", "images.example.org"),
        ("HTTPS://Images.Example.ORG:443/", "images.example.org"),
        ("https://images.example.org./a", "images.example.org"),
        ("https://a.b.example.net", "a.b.example.net"),
        ("https://b\u00fccher.example.net/", "xn--bcher-kva.example.net"),
    ],
)
def test_what_is_listed_is_allowed(url: str, host: str) -> None:
    assert check_url(url, POLICY).host == host


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://images.example.org/a.jpg", "only https"),
        ("file:///etc/passwd", "only https"),
        ("ftp://images.example.org/", "only https"),
        ("//images.example.org/a", "only https"),
        ("images.example.org", "only https"),
        ("https://anna:pw@images.example.org/", "user or password"),
        ("https://images.example.org@127.0.0.1/", "user or password"),
        ("https://images.example.org\\@127.0.0.1/", "user or password"),
        ("https://images.example.org:8443/", "only port 443"),
        ("https://images.example.org:22/", "only port 443"),
        ("https://example.net/", "not on the list"),
        ("https://evilexample.net/", "not on the list"),
        ("https://images.example.org.evil.com/", "not on the list"),
        ("https://evil.com/images.example.org", "not on the list"),
        ("https://evil.com#@images.example.org/", "not on the list"),
        ("https://evil.com%2f.example.net/", "not on the list"),
        ("https://evil.com%00.example.net/", "not on the list"),
        ("https://-.example.net/", "not on the list"),
        ("https://localhost/", "not on the list"),
        ("https://localhost./", "not on the list"),
        ("https://127.0.0.1/", "not on the list"),
        ("https://0x7f.1/", "not on the list"),
        ("https://2130706433/", "not on the list"),
        ("https://[::ffff:127.0.0.1]/", "not on the list"),
        ("https://[::1]/", "not on the list"),
        ("https:///a.jpg", "not on the list"),
        ("https://017700000001/", "not on the list"),
        ("https://127.1.1.999/", "not a URL"),
        ("https://[::1", "not a URL"),
        ("https://a\nb.example.net/", "not a URL"),
        ("https://\uff45vil\u2024example.net/", "not a URL"),
        ("https://images.example.org/" + "a" * 5000, "longer than"),
        ("https://images.example.org/" + "a" * 10**6, "longer than"),
    ],
)
def test_the_rest_is_refused_with_the_reason(url: str, told: str) -> None:
    with pytest.raises(ImageUrlRefused) as caught:
        check_url(url, POLICY)
    assert told in caught.value.detail
    assert "secret" not in caught.value.detail


def test_without_a_list_nothing_is_fetched() -> None:
    with pytest.raises(ImageUrlRefused, match="fetches no images"):
        check_url("https://images.example.org/", UrlPolicy(hosts=(), max_bytes=1))


@pytest.mark.parametrize(
    "address",
    [
        "0.0.0.0", "0.1.2.3", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1",
        "127.255.255.254", "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.1",
        "192.0.2.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1",
        "239.255.255.250", "240.0.0.1", "255.255.255.255", "168.63.129.16",
        "::", "::1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1", "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::1", "100::1", "2001::1",
        "2001:db8::1", "2002:7f00:1::", "2002:808:808::1", "fc00::1", "fd00:ec2::254", "fe80::1",
        "fe80::1%1", "fec0::1", "ff02::1", "ff0e::1", "4000::1",
    ],
)  # fmt: skip
def test_addresses_of_no_public_host(address: str) -> None:
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111"])
def test_addresses_of_public_hosts(address: str) -> None:
    assert is_public(ip_address(address))


@pytest.mark.parametrize(
    "value",
    ["*", "https://a.org", "a.org/x", "a.org:443", "127.0.0.1", "localhost", "a.*.org", "a.org,"],
)
def test_lists_that_cannot_be_are_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGVLM_URL_HOSTS", value)
    with pytest.raises(SettingsError, match="names of hosts with commas"):
        load_settings()


def test_a_list_of_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGVLM_URL_HOSTS", "Images.example.org, *.example.net")
    assert load_settings().url_hosts == "images.example.org,*.example.net"
