"""The feature cache is bounded in bytes and forgets what was used longest ago."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from service.feature_cache import FeatureCache


def test_least_recently_used_goes_first() -> None:
    cache: FeatureCache[bytes] = FeatureCache(10, len)
    cache.put(b"a", b"aaaa")
    cache.put(b"b", b"bbbb")
    assert cache.get(b"a") == b"aaaa"
    cache.put(b"c", b"cccc")
    assert cache.get(b"b") is None
    assert cache.get(b"a") == b"aaaa"
    assert cache.get(b"c") == b"cccc"


def test_value_larger_than_the_cache_evicts_nothing() -> None:
    cache: FeatureCache[bytes] = FeatureCache(4, len)
    cache.put(b"a", b"aa")
    cache.put(b"huge", b"12345")
    assert cache.get(b"huge") is None
    assert cache.get(b"a") == b"aa"


def test_zero_bytes_keeps_nothing() -> None:
    cache: FeatureCache[bytes] = FeatureCache(0, len)
    cache.put(b"a", b"1")
    assert cache.get(b"a") is None


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.binary(min_size=1, max_size=1), st.binary(max_size=12))))
def test_bound_holds_and_values_are_the_latest(puts: list[tuple[bytes, bytes]]) -> None:
    cache: FeatureCache[bytes] = FeatureCache(20, len)
    latest: dict[bytes, bytes] = {}
    for key, value in puts:
        cache.put(key, value)
        latest[key] = value
        assert cache.get(key) == value
        held = [found for key in latest if (found := cache.get(key)) is not None]
        assert cache.bytes_held == sum(map(len, held)) <= 20
    for key, value in latest.items():
        assert cache.get(key) in (None, value)
