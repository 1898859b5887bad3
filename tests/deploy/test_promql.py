"""What the other tests here rely on when they take expressions apart."""

from __future__ import annotations

import pytest

from tests.deploy.promql import always, selectors, shorten


@pytest.mark.parametrize(
    ("expr", "expected"),
    [
        ("up", [("up", "")]),
        ('up{job!="a"} == 0', [("up", '{job!="a"}')]),
        (
            'sum by (le) (rate(a_bucket{x=~"y"}[5m])) / on (job, instance) b:c:d offset 1d > 2',
            [("a_bucket", '{x=~"y"}'), ("b:c:d", "")],
        ),
        ("(sum(a) or vector(0)) < 1 and on (job) time() - b > 3 * 86400", [("a", ""), ("b", "")]),
        ("histogram_quantile(0.99, a)", [("a", "")]),
        (
            '(time() - a{i=~"$i"}) * on (i) group_left (name) b{i=~"$i"}',
            [("a", '{i=~"$i"}'), ("b", '{i=~"$i"}')],
        ),
    ],
)
def test_selectors_are_found(expr: str, expected: list[tuple[str, str]]) -> None:
    assert list(selectors(expr)) == expected


def test_comparisons_become_numbers_and_matchers_stay() -> None:
    assert always('a{b!="c>d"} > 1 and e >= 2') == 'a{b!="c>d"} > bool 1 and e >= bool 2'


def test_windows_become_short_and_names_stay() -> None:
    short = shorten("a:rate1d + rate(b[1d] offset 6h)", "10s", "2s")
    assert short == "a:rate1d + rate(b[10s] offset 2s)"
