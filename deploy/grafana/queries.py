"""PromQL that the panels are made of. Every series is narrowed to the chosen instances."""

from __future__ import annotations

MODEL_ROUTES = "/(segment|v2/.+/infer|hf/.+|label-studio/predict|sam3/.+)"
"""A regular expression of the routes that ask the model, as in deploy/prometheus/rules."""

ROUTE = 'route=~"$route"'
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
    """Requests to the chosen routes that ended, in a second."""
    return rate("segvlm_requests_total", ROUTE, *matchers)


def quantile(q: float, histogram: str, *matchers: str, by: str = "") -> str:
    """Of all chosen instances together; one for each value of the label `by`."""
    labels = ("le", by) if by else ("le",)
    return f"histogram_quantile({q:g}, {total(rate(f'{histogram}_bucket', *matchers), *labels)})"
