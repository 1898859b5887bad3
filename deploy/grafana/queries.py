"""PromQL that the panels are made of. Every series is narrowed to the chosen instances."""

from __future__ import annotations

SEGMENT = 'route="/segment"'
ERRORS = 'code=~"5.."'
ANSWERED = 'code="200"'
REFUSED = 'code="503"'
TOO_LATE = 'code="504"'


def series(metric: str, *matchers: str) -> str:
    """The metric on the chosen instances."""
    chosen = ",".join((*matchers, 'instance=~"$instance"'))
    return f"{metric}{{{chosen}}}"


def rate(metric: str, *matchers: str) -> str:
    """A counter's increase in a second."""
    return f"rate({series(metric, *matchers)}[$__rate_interval])"


def total(of: str, *by: str) -> str:
    """The sum, for each value of the labels `by`."""
    return f"sum by ({', '.join(by)}) ({of})" if by else f"sum({of})"


def rates_that_occur(metric: str, by: str, *matchers: str) -> str:
    """A counter's rate for each value of the label `by` that occurs in the shown time at all."""
    increase = f"increase({series(metric, *matchers)}[$__range] @ end())"
    return f"{total(rate(metric, *matchers), by)} and on ({by}) {total(increase, by)} > 0"


def requests(*matchers: str) -> str:
    """`POST /segment` requests that ended, in a second."""
    return rate("segvlm_requests_total", SEGMENT, *matchers)


def quantile(q: float, histogram: str, *matchers: str) -> str:
    """Of all chosen instances together."""
    return f"histogram_quantile({q:g}, {total(rate(f'{histogram}_bucket', *matchers), 'le')})"
