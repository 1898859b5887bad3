"""The dashboard that answers: what became of the requests, and why?"""

from __future__ import annotations

from deploy.grafana.layout import dashboard, ninths
from deploy.grafana.panels import Json, Query, bar_gauge, time_series
from deploy.grafana.queries import (
    ANSWERED,
    ERRORS,
    ROUTE,
    rate,
    rates_that_occur,
    requests,
    series,
    total,
)

BURN_WINDOWS = ("5m", "1h", "6h", "3d")
CODE_COLOURS = (
    ("^2..$", "green"),
    ("^400$", "yellow"),
    ("^4(0[1-9]|[1-8].)$", "light-orange"),
    ("^499$", "blue"),
    ("^500$", "dark-red"),
    ("^503$", "red"),
    ("^504$", "purple"),
)


def request_outcomes() -> Json:
    """All requests, then those to the chosen routes, then whose they are."""
    rows = (
        (_received(), _routes(), _sums()),
        (_codes(), _reasons(), _errors()),
        (_burn(), _keys(), _batch_failures()),
    )
    return dashboard("Requests", "What became of every request.", ninths(rows), by_route=True)


def _received() -> Json:
    return time_series(
        "Received and ended",
        "Requests on all routes. Every one that arrived ends once; the lines part only while "
        "requests wait.",
        "reqps",
        Query(total(rate("segvlm_received_total")), "received"),
        Query(total(rate("segvlm_requests_total")), "ended"),
    )


def _codes() -> Json:
    return time_series(
        "Answers by code",
        "Requests to the chosen routes. 499: the caller left; only logs and metrics see it.",
        "reqps",
        Query(rates_that_occur("segvlm_requests_total", "code", ROUTE), "{{code}}"),
        stacked=True,
        colours=CODE_COLOURS,
    )


def _reasons() -> Json:
    return time_series(
        "Without a result, by reason",
        "Requests on all routes that got an error; docs/api.md says what each reason means.",
        "reqps",
        Query(total(rate("segvlm_rejected_total")), "all"),
        Query(rates_that_occur("segvlm_rejected_total", "reason"), "{{reason}}"),
    )


def _routes() -> Json:
    return time_series(
        "By route",
        "Requests on all routes that ended. unmatched: paths that nothing is at.",
        "reqps",
        Query(rates_that_occur("segvlm_requests_total", "route"), "{{route}}"),
    )


def _errors() -> Json:
    return time_series(
        "Errors by route",
        "Share of the requests to each chosen route that got a 5xx.",
        "percentunit",
        Query(
            f"{total(requests(ERRORS), 'route')} / {total(requests(), 'route')}",
            "{{route}}",
        ),
    )


def _keys() -> Json:
    return time_series(
        "By API key",
        "Requests, streams opened and frames that were let in, by the name of their key, and those "
        "that were refused (401, 429). anonymous: without a known key.",
        "suffix:/s",
        Query(rates_that_occur("segvlm_key_uses_total", "key"), "{{key}}"),
        Query(rates_that_occur("segvlm_key_refusals_total", "key"), "{{key}} refused"),
    )


def _burn() -> Json:
    return time_series(
        "Error budget burn",
        "How many times as fast as the objective of 30 days allows requests fail, over each "
        "window. All instances and routes together; above the line the budget will not last.",
        "suffix: x",
        *(Query(f"segvlm:error_budget_burn:rate{window}", window) for window in BURN_WINDOWS),
        limit=1,
    )


def _batch_failures() -> Json:
    return time_series(
        "Batch failures",
        "Batches that failed and were run again in parts, or failed for good.",
        "suffix:/s",
        Query(total(rate("segvlm_batch_failures_total"), "kind"), "{{kind}}"),
    )


def _sums() -> Json:
    answered = series("segvlm_requests_total", ROUTE, ANSWERED)
    return bar_gauge(
        "Outcomes in the shown time",
        "Requests to the chosen routes that were answered with a result, and on all routes those "
        "that were not, by reason.",
        "short",
        Query(f"sum(increase({answered}[$__range]))", "answered", instant=True),
        Query(
            "sort_desc(sum by (reason) "
            f"(increase({series('segvlm_rejected_total')}[$__range])) > 0)",
            "{{reason}}",
            instant=True,
        ),
    )
